"""What a run says before its first step."""

import json

from edlm_jax.training.initial import abstract_state, read_spec
from edlm_jax.training.run import Run
from edlm_jax.training.start import about_data, about_model
from edlm_jax.training.train import Batches
from tests.training.tiny import MASK_ID


def said(c) -> list[str]:
    run = Run.of(c)
    (spec, tokenizer), mesh = read_spec(run.start), run.make_mesh()
    _, state = abstract_state(run.start, run.optimizer, spec, mesh)
    batches = Batches(run.data, spec, tokenizer, mesh)
    lines = about_model(run.start, spec, tokenizer, state.params)
    return [*lines, *about_data(batches, run.objective.layout, run.steps)]


def test_the_model_and_its_mask(config, tiny_converted_dir):
    model, mask, *_ = said(config)
    assert model == f"model: {config.init.path} (qwen3, 2 layers of width 32), 18,656 parameters trained, 0 frozen"
    assert mask == f"mask token: <|mask|> ({MASK_ID}), made for it"
    config.init.mask_token_id, config.lora.rank = 5, 2
    model, mask, *_ = said(config)
    assert "5,152 parameters trained, 15,360 frozen" in model  # the matrices of attention and FFN
    assert mask == "mask token: w5 (5), set by init.mask_token_id"
    config.init.update(path=str(tiny_converted_dir), mask_token_id=-1)
    config.data.sources = config.data.eval_sources = (dict(kind="tasks", size=9),)
    assert said(config)[1] == "mask token: <|fim_pad|> (258), the one this model was converted with"
    config.objective.pattern = "causal"
    assert not any("mask" in line for line in said(config))


def write(path, rows) -> dict:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return dict(kind="jsonl", path=str(path))


def test_what_is_lost_of_the_data(config, tmp_path):
    words = lambda count: " ".join(["w1"] * count)  # noqa: E731
    fits, full, cut = (dict(prompt=words(p), response=words(r)) for p, r in ((3, 5), (32, 1), (4, 40)))
    texts = [dict(text=words(9)), dict(text=words(70)), dict(text="w1 <|mask|> w2")]
    config.data.sources = (
        write(tmp_path / "pairs.jsonl", [fits, fits, cut, full, full]) | dict(weight=2.0),
        write(tmp_path / "texts.jsonl", texts),
        dict(kind="tasks", size=100_000, kinds=("sort",)),
    )
    config.data.eval_sources = (write(tmp_path / "held_out.jsonl", [full, *[fits] * 20]),)
    lines = said(config)[2:]
    assert lines[0].endswith("pairs.jsonl weight=2.0: 5 documents, 50 tokens, 1 cut, 2 too long")
    assert lines[1].endswith("texts.jsonl: 3 documents, 85 tokens, 1 split, 1 with mask token")
    assert "size=100000 kinds=('sort',): 100,000 documents, about " in lines[2]
    assert lines[3].startswith("held-out: kind=jsonl") and lines[3].endswith(": 21 documents, 180 tokens, 1 too long")
    assert [line.split(":")[0] for line in lines[4:8]] == ["too long", "cut", "split", "with mask token"]
    assert lines[8:] == [
        "held-out: 2 batches of 8 rows, all that fill rows",
        "step: 8 rows of 32 = 256 tokens in blocks of 4; 6 steps",
    ]


def test_the_counts_are_in_the_metrics(config, tmp_path):
    from edlm_jax.training.train import train

    fits, full = (dict(prompt=" ".join(["w1"] * length), response="w2") for length in (4, 40))
    config.data.sources = (write(tmp_path / "pairs.jsonl", [full, fits, fits]),)
    config.steps = 1
    assert train(Run.of(config), tmp_path / "run")["documents_too_long"] == 1
