"""The arm and its words: kinematics against complex numbers, bins, the exact controller, the lines of the command."""

import cmath
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edlm_jax import pretrained
from edlm_jax.data import reach
from edlm_jax.data.reach import FASTEST, HIGH_J, LETTERS, LOW_J, STEP_SECONDS, STEPS
from edlm_jax.data.split import belongs_to_test
from edlm_jax.errors import InputError
from edlm_jax.pretrained import load_tokenizer
from tests.seeds import fresh_rng


def draw_angles(rng, *shape):
    return rng.uniform(LOW_J, HIGH_J, (*shape, 2))


def test_the_hand_is_where_two_turned_links_end():
    angles_NJ = draw_angles(fresh_rng(), 100)
    links = [reach.LINK * cmath.exp(1j * a) * (1 + cmath.exp(1j * b)) for a, b in angles_NJ]
    np.testing.assert_allclose(reach.hand(angles_NJ), [(link.real, link.imag) for link in links], atol=1e-12)


def test_angles_at_a_point_bring_the_hand_there():
    for angles_J in draw_angles(fresh_rng(), 100):
        np.testing.assert_allclose(reach.angles_at(reach.hand(angles_J)), angles_J, atol=1e-6)
    for out_of_reach in ([2.0, 1.0], [0.0, 0.0], [-1.0, -1.0]):
        angles_J = reach.angles_at(np.array(out_of_reach))
        assert np.isfinite(angles_J).all() and (LOW_J <= angles_J).all() and (angles_J <= HIGH_J).all()


def test_the_arm_moves_as_a_plain_loop_says():
    rng = fresh_rng()
    for _ in range(50):
        start_J, velocity_TJ = draw_angles(rng), rng.normal(0, 2, (9, 2))
        path_TJ = reach.simulate(start_J, velocity_TJ)
        for joint in range(2):
            angle = start_J[joint]
            for step, velocity in enumerate(velocity_TJ[:, joint]):
                angle += STEP_SECONDS * max(-FASTEST, min(FASTEST, velocity))
                angle = max(LOW_J[joint], min(HIGH_J[joint], angle))
                assert path_TJ[step, joint] == pytest.approx(angle, abs=1e-12)


def test_joints_stop_at_their_limits():
    path_TJ = reach.simulate((LOW_J + HIGH_J) / 2, np.array([[9.0, -9.0]] * 40))
    assert path_TJ[-1].tolist() == [HIGH_J[0], LOW_J[1]]
    assert np.abs(np.diff(path_TJ, axis=0)).max() <= STEP_SECONDS * FASTEST + 1e-12


def test_a_number_comes_back_within_half_a_bin():
    angles_NJ = draw_angles(fresh_rng(), 500)
    words = reach.write_bins(angles_NJ, LOW_J, HIGH_J)
    read_NJ, half_J = reach.read_bins(words, LOW_J, HIGH_J, 500), (HIGH_J - LOW_J) / len(LETTERS) / 2
    assert (np.abs(read_NJ - angles_NJ) <= half_J + 1e-12).all()
    assert reach.write_bins(read_NJ, LOW_J, HIGH_J) == words  # a bin's middle is in the bin
    assert reach.write_bins([-7.0, 7.0], -1.0, 1.0) == f" {LETTERS[0]} {LETTERS[-1]}"
    assert reach.read_actions(reach.write_actions(np.zeros((STEPS, 2)))) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("words", ["", " a", " a b c", " a ab", " a ?", " a z"])
def test_what_is_no_pair_of_bins_is_refused(words):
    with pytest.raises(InputError, match="are not 2 bins"):
        reach.read_bins(words, -1.0, 1.0)
    for prompt in (f"reach{words} to a b ->", f"reach a b to{words} ->", words):
        with pytest.raises(InputError, match="are not 2 bins"):
            reach.read_prompt(prompt)


def test_a_chunk_has_all_of_its_steps():
    with pytest.raises(InputError, match="are not 14 bins"):
        reach.read_actions(" a b")


def test_a_bin_is_a_token_of_the_quickstarts_model():
    tokenizer = load_tokenizer(Path(pretrained.__file__).parent / "quickstart_ar")
    assert len({tokenizer.encode(f" {letter}")[0] for letter in LETTERS}) == len(LETTERS)
    assert len(tokenizer.encode(reach.generate_example(0, 0)["response"])) == 2 * STEPS


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_exact_controller_always_reaches_the_target(split):
    """Chunk by chunk, from what the arm sees, which is no more exact than bins are."""
    seed = int(fresh_rng().integers(10**9))
    for index in range(300):
        example = reach.generate_example(seed, index, split)
        angles_J, target_2 = reach.read_prompt(example["prompt"])
        assert reach.control(angles_J, target_2) == example["response"]
        for _ in range(4):
            chunk = reach.control(*reach.read_prompt(reach.write_prompt(angles_J, target_2)))
            angles_J = reach.simulate(angles_J, reach.read_actions(chunk))[-1]
        assert np.linalg.norm(reach.hand(angles_J) - target_2) <= 0.15


def test_the_command_writes_the_same_lines_each_time(tmp_path):
    command = [sys.executable, "-m", "edlm_jax.data.reach", "--count=40"]
    for name, split in (("a", "train"), ("b", "train"), ("c", "test")):
        subprocess.run([*command, f"--out={tmp_path / 'new' / name}", f"--split={split}"], check=True)
    first, again, test = ((tmp_path / "new" / name).read_text() for name in "abc")
    assert first == again
    lines = [json.loads(line) for line in first.splitlines()]
    assert lines == [reach.generate_example(0, index) for index in range(40)]
    held_out = [json.loads(line)["prompt"] for line in test.splitlines()]
    assert len(held_out) == 40 and all(map(belongs_to_test, held_out))
    assert not any(belongs_to_test(line["prompt"]) for line in lines)
