"""What a run says: never nothing for long, each thing once."""

import time

from edlm_jax.training.progress import Reporter


def wait_for(capsys, text: str) -> str:
    """What was said until this was."""
    seen, deadline = "", time.monotonic() + 60
    while text not in seen and time.monotonic() < deadline:
        time.sleep(0.01)
        seen += capsys.readouterr().err
    return seen


def test_no_silence_lasts(capsys):
    with Reporter(9, patience=0.05) as reporter:
        with reporter.busy("reading the weights"):
            assert "reading the weights: 0 s so far" in wait_for(capsys, "so far")
        reporter.begin(3)
        assert "step 4 of 9: 0 s so far" in wait_for(capsys, "step 4")


def test_compiling_is_said_with_its_seconds(capsys):
    with Reporter(9) as reporter, reporter.compiling("the training step"):
        assert capsys.readouterr().err == "compiling the training step\n"
    assert capsys.readouterr().err == "compiled in 0 s\n"


def test_steps_are_said_when_logged_and_when_they_are_slow(capsys):
    for patience, said in [(1000.0, [4]), (0.0, [1, 2, 3, 4, 5])]:
        reporter = Reporter(5, patience=patience)  # not entered: nobody watches
        reporter.begin(0)
        for step in range(1, 6):
            reporter.step(step, logged=step == 4)
            if step == 4:
                reporter.scalars(step, dict(loss=1.5, diffusion_loss=0.75, ignored=0.0))
        lines = capsys.readouterr().err.splitlines()
        assert [line.split("  ")[0] for line in lines] == [f"step {step}/5" for step in said]
        assert lines[said.index(4)] == "step 4/5  diffusion_loss 0.75  loss 1.5  0 s left"


def test_the_time_left_leaves_out_compiling(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr("edlm_jax.training.progress.time.monotonic", lambda: now[0])
    reporter = Reporter(100, patience=1e9)
    reporter.begin(10)
    for step, seconds in ((11, 500), (12, 20), (13, 20)):
        now[0] += seconds
        reporter.step(step, logged=False)
    with reporter.compiling("the training step for blocks of 4"):
        now[0] += 1000
    reporter.scalars(13, dict(loss=1.0))
    assert capsys.readouterr().err.splitlines()[-1] == "step 13/100  loss 1  29 min left"  # 87 steps of 20 seconds
