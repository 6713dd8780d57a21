"""What config.json, the tokenizer and the data decide is said before a tensor is read: here there are none to read."""

import json
import shutil

import pytest

from edlm_jax.commands.main import main
from edlm_jax.evaluation.mteb import Encoder
from tests.commands.test_main import fail
from tests.conftest import TINY

NO_WEIGHTS = shutil.ignore_patterns("*.safetensors")


@pytest.fixture
def models(tiny_ar_dir, tiny_converted_dir, tmp_path):
    """{"ar", "converted", "drafts", "narrow", "small", "ends"}: directories without weights."""
    found = {}
    for name, directory in (("ar", tiny_ar_dir), ("converted", tiny_converted_dir)):
        found[name] = shutil.copytree(directory, tmp_path / name, ignore=NO_WEIGHTS)
    for name, change in (("narrow", {"intermediate_size": 32}), ("small", {"vocab_size": 200})):
        found[name] = shutil.copytree(found["ar"], tmp_path / name)
        (found[name] / "config.json").write_text(json.dumps(TINY | change))
    found["ends"] = shutil.copytree(found["ar"], tmp_path / "ends")
    (found["ends"] / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(9))}))
    found["drafts"] = shutil.copytree(found["converted"], tmp_path / "drafts")
    config = json.loads((found["drafts"] / "config.json").read_text())
    config["edlm"] |= dict(pattern="causal_block", adapted="noisy")
    (found["drafts"] / "config.json").write_text(json.dumps(config))
    return found


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("generate --model={ar} --prompt=a --mode=diffusion", "never converted"),
        ("generate --model={ar} --prompt=a --mode=psd", "never converted"),
        ("generate --model={converted} --prompt=a --mode=psd --temperature=1", "psd is greedy"),
        ("generate --model={converted} --prompt=a --block-length=-8", "block_length must be a positive"),
        ("generate --model={converted} --prompt=a --block-length=513", "longer than the model's 512 positions"),
        ("generate --model={converted} --prompt=a --mask-id=-1", "mask_id -1 is outside the vocabulary"),
        ("generate --model={converted} --prompt=a --mask-id=512000", "mask_id 512000 is outside"),
        ("generate --model={converted} --prompt=a --mode=quadratic_speculation:ahead=-1", "ahead must not be negative"),
        ("generate --model={converted} --prompt=a --sub-block-length=3", "must divide the block length 4"),
        ("generate --model={converted} --prompt=a --dual-cache", "dual_cache needs sub_block_length"),
        ("generate --model={converted} --prompt=a --rule=fixed:2 --threshold=0.5", "give it or rule, not both"),
        ("generate --model={converted} --prompt=a --mode=diffusion:rule=fixed:2 --threshold=0.5", "rule, not both"),
        ("bench decode --model={converted} --modes=psd:rule=fixed:2,threshold=0.5", "rule, not both"),
        ("generate --model={converted} --prompt=a --rule=fixed:0", "tokens must be positive"),
        ("generate --model={converted} --prompt=a --max-new-tokens=512", "prompt 0 is too long"),
        ("generate --model={converted} --prompt=<|fim_pad|>", "prompt 0 holds the mask token 258"),
        ("generate --model={converted} --prompt=a --chat", "a tokenizer with a chat template, and this one has none"),
        ("generate --model={converted} --prompt=a --mode=prompt_lookup:drafts=513", "more than the model's 512"),
        ("generate --model={converted} --prompt=a --mode=psd:depth=513", "depth 513 is more than the model's 512"),
        ("generate --model={converted} --prompt=a --temperature=inf", "temperature must lie in"),
        ("generate --model={converted} --prompt=a --temperature=1 --top-k=3000000000", "top_k must lie in"),
        ("generate --model={converted} --prompt=a --seed=-1", "seed must not be negative, not -1"),
        ("evaluate --model={ar} --baseline={ar}", "never converted; --baseline"),
        ("evaluate --model={ar} --sweep", "never converted; --sweep"),
        ("evaluate --model={drafts} --baseline={ar}", "its text is the AR model's; --baseline"),
        ("evaluate --model={drafts} --sweep", "its text is the AR model's; --sweep"),
        ("evaluate --model={converted} --sweep --block-lengths=513", "longer than the model's 512"),
        ("evaluate --model={converted} --baseline={small}", "embeds 200 tokens, less than"),
        ("evaluate --model={converted} --data=nowhere.jsonl", "no file at nowhere.jsonl"),
        ("evaluate --model={converted} --task=heldout --data=nowhere.txt", "no file at nowhere.txt"),
        ("evaluate --model={converted} --task=retrieval --count=1000000", "ask for no more"),
        ("serve --model={ar} --port=0 --tensor=2", "--tensor must be 8"),
        ("serve --model={ar} --port=0 --tensor=0", "--tensor must be 8"),
        ("serve --model={ar} --port=0 --slots=0", "slots must be positive and columns at least 2, not 0 and 512"),
        ("serve --model={ar} --port=0 --dtype=bfloat16 --cache-columns=512", "cache_columns are for caches in pages"),
        ("serve --model={ar} --port=0 --cache-columns=64", "a row may need"),
        ("serve --model={converted} --port=0 --cache-columns=64", "a row may need"),
        ("serve --model={ends} --port=0", "tokens that end an answer, and a server's rows may end at 8"),
        ("diagnose --model={ar}", "never converted"),
        ("diagnose --model={drafts}", "its text is the AR model's"),
        ("diagnose --model={converted} --baseline={narrow}", "ffn_width 32 and 48"),
        ("diagnose --model={converted} --baseline={small}", "embeds 200 tokens, less than"),
        ("diagnose --model={converted} --data=nowhere.jsonl", "no file at nowhere.jsonl"),
        ("diagnose --model={converted} --out={ar}/config.json", "config.json: File exists; choose another path"),
        ("diagnose --model={converted} --states={ar}", "is a directory; give the name of a file"),
        ("bench serve --model={converted} --out={ar}/config.json", "config.json: File exists; choose another path"),
        ("bench decode --model={ar}", "never converted"),
        ("bench decode --model={converted} --max-new-tokens=500", "prompt 0 is too long"),
        ("bench decode --model={converted} --thresholds=2", "threshold must lie in"),
    ],
)
def test_commands_refuse_before_they_read_weights(models, capsys, arguments, reason):
    assert reason in fail(capsys, *arguments.format(**models).split())


def test_prompts_that_are_all_refused_need_no_weights(models, tmp_path, capsys):
    (tmp_path / "prompts").write_text("\n" + "a" * 600 + "\n")
    command = ["generate", f"--model={models['converted']}", f"--prompts-file={tmp_path / 'prompts'}", "--json"]
    assert main(command) == 2
    result = json.loads(capsys.readouterr().out)
    assert result["completions"] == [] and [entry["index"] for entry in result["refused"]] == [0, 1]


def test_tasks_that_are_all_refused_need_no_weights(models, tmp_path, capsys):
    rows = [dict(prompt="a" * 600, response="b"), dict(prompt="say <|fim_pad|>", response="c")]
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = f"--data={tmp_path / 'tasks.jsonl'}"
    for command in (["evaluate"], ["evaluate", "--sweep"], ["diagnose"]):
        reason = fail(capsys, *command, f"--model={models['converted']}", data)
        assert f"no task can be evaluated: the prompt of {tmp_path / 'tasks.jsonl'}:1 is too long: 600 tokens" in reason


def test_the_encoder_refuses_before_it_reads_weights(models):
    with pytest.raises(ValueError, match="attention 'sideways'"):
        Encoder(models["ar"], attention="sideways")
    with pytest.raises(ValueError, match="attention 'block_causal'"):
        Encoder(models["ar"], attention="block_causal")


@pytest.fixture
def trained(models, tmp_path):
    """A work directory whose checkpoint cannot be read; its model.json can be."""
    workdir = tmp_path / "run"
    (workdir / "checkpoints" / "7" / "params").mkdir(parents=True)

    def describe(**changes):
        source = changes.pop("source", str(models["converted"]))
        config = json.loads((models["converted"] / "config.json").read_text()) | changes
        (workdir / "model.json").write_text(json.dumps(dict(config=config, source=source, lora=None)))
        return workdir

    return describe


LLAMA = dict(architectures=["LlamaForCausalLM"], model_type="llama")


@pytest.mark.parametrize(
    ("changes", "how", "reason"),
    [
        (LLAMA, "--format=sdar", "needs family 'qwen3'; this model has 'llama'"),
        ({"edlm": None}, "--format=sdar", "is for converted models"),
        ({}, "--format=sdar", "has its mask at 151669; this vocabulary ends at 259"),
        ({}, "--format=gguff", "format 'gguff' is unknown"),
        ({"source": "/nowhere/at/all"}, "", "whose tokenizer belongs to this model, is gone"),
    ],
)
def test_export_refuses_before_it_reads_a_checkpoint(trained, tmp_path, capsys, changes, how, reason):
    command = ["export", f"--workdir={trained(**changes)}", f"--out={tmp_path / 'out'}", *how.split()]
    assert reason in fail(capsys, *command)
    assert not (tmp_path / "out").exists()


def test_export_does_not_read_what_it_could_not_write(trained, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("mine")
    assert "exists already" in fail(capsys, "export", f"--workdir={trained()}", f"--out={tmp_path / 'out'}")
