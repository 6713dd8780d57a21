"""config.json in, spec out, config.json back; and what must be refused by name."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from edlm_jax.errors import InputError
from edlm_jax.models.spec import Conversion, ModelSpec

CASES = sorted(path.parent for path in (Path(__file__).parents[1] / "golden").glob("*/config.json"))
CONVERSION = Conversion(mask_token_id=5, block_length=4, pattern="semi_block", prefill="causal")


def read(case: Path, name: str = "config.json") -> dict:
    return json.loads((case / name).read_text())


def base(family: str) -> dict:
    return read(CASES[0].parent / {"qwen2": "qwen2_untied", "llama": "llama3"}.get(family, family))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_old_and_new_form_give_the_same_spec(case):
    new, old = ModelSpec.from_hf(read(case)), ModelSpec.from_hf(read(case, "config_old.json"))
    assert dataclasses.replace(old, hf_json=new.hf_json) == new
    assert hash(new) == hash(dataclasses.replace(new))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("form", ["config.json", "config_old.json"])
def test_what_was_read_is_written_back(case, form):
    config = read(case, form) | {"something_we_do_not_know": [1, {"a": 2}]}
    assert ModelSpec.from_hf(config).to_hf() == config
    converted = dataclasses.replace(ModelSpec.from_hf(config), conversion=CONVERSION)
    written = converted.to_hf()
    assert written.pop("edlm") == dataclasses.asdict(CONVERSION)
    assert written == config
    assert ModelSpec.from_hf(converted.to_hf()).conversion == CONVERSION


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_changed_spec_writes_its_own_numbers(case):
    spec = dataclasses.replace(ModelSpec.from_hf(read(case)), num_layers=3, max_length=99)
    again = ModelSpec.from_hf(spec.to_hf())
    assert dataclasses.replace(again, hf_json=spec.hf_json) == spec
    by_hand = dataclasses.replace(spec, hf_json="{}")
    again = ModelSpec.from_hf(by_hand.to_hf())
    assert dataclasses.replace(again, hf_json="{}") == by_hand


def test_families_differ_where_they_should():
    specs = {case.name: ModelSpec.from_hf(read(case)) for case in CASES}
    assert {name for name, spec in specs.items() if spec.qk_norm} == {"qwen3", "gemma3", "gemma3_irregular"}
    assert {name for name, spec in specs.items() if spec.o_bias} == {"llama_bias"}
    assert {name for name, spec in specs.items() if spec.mlp_bias} == {"llama_bias"}
    assert {name for name, spec in specs.items() if spec.qkv_bias} == {
        *("qwen2_untied", "qwen2_tied", "qwen2_yarn", "llama_bias")
    }
    tied = {"qwen2_tied", "qwen3", "smollm2", "gemma3", "gemma3_irregular"}
    assert {name for name, spec in specs.items() if spec.tied} == tied
    assert specs["qwen3"].head_dim == 16
    assert specs["smollm2"].head_dim == 8


def test_an_absent_head_size_is_the_family_default():
    qwen3, llama = base("qwen3"), base("llama")
    del qwen3["head_dim"], llama["head_dim"]
    assert ModelSpec.from_hf(qwen3).head_dim == 128
    assert ModelSpec.from_hf(llama | {"num_key_value_heads": None}).num_kv_heads == 4
    with pytest.raises(InputError, match="hidden_size 33"):
        ModelSpec.from_hf(llama | {"hidden_size": 33})


QWEN_WINDOW = {"use_sliding_window": True, "sliding_window": 1024, "layer_types": None, "max_window_layers": 1}


@pytest.mark.parametrize(
    ("family", "change", "named"),
    [
        ("qwen2", {"architectures": ["Qwen2ForSequenceClassification"]}, "Qwen2ForSequenceClassification"),
        ("qwen2", {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, "GPT2LMHeadModel"),
        ("llama", {"architectures": None, "model_type": "phi3"}, "phi3"),
        ("llama", {"model_type": "qwen2"}, "model_type 'qwen2'"),
        ("llama", {"hidden_act": "gelu"}, "gelu"),
        ("qwen3", {"num_experts": 8}, "num_experts"),
        ("qwen3", {"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ("qwen3", {"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
        ("qwen2", QWEN_WINDOW, "sliding window of 1024"),
        ("qwen3", QWEN_WINDOW, "sliding window of 1024"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0"),
        ("gemma3", {"layer_types": ["full_attention"]}, "7 times"),
        ("gemma3", {"sliding_window": -1}, "sliding_window must be"),
        ("gemma3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "an entry for sliding_attention"),
        ("gemma3", {"hidden_activation": "relu"}, "hidden_activation 'relu'"),
        ("gemma3", {"model_type": "gemma3"}, "model_type 'gemma3'"),
        ("smollm3", {"no_rope_layers": [1]}, "of 1 layers, there are 5"),
        ("smollm3", {"use_sliding_window": True}, "use_sliding_window"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ("llama", {"hidden_size": "32"}, "hidden_size"),
        ("llama", {"num_hidden_layers": 0}, "num_hidden_layers"),
        ("llama", {"vocab_size": True}, "vocab_size"),
        ("llama", {"num_key_value_heads": 3}, "4 heads cannot share 3"),
        ("llama", {"attention_bias": "yes"}, "attention_bias"),
        ("llama", {"rms_norm_eps": 0}, "rms_norm_eps"),
        ("llama", {"rms_norm_eps": math.inf}, "rms_norm_eps"),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": math.inf}}, "rope_theta"),
        ("llama", {"edlm": {"mask_token": 3}}, "edlm"),
        ("llama", {"edlm": {"mask_token_id": 67, "block_length": 4}}, "outside the vocabulary"),
    ],
)
def test_what_we_lack_is_refused_by_name(family, change, named):
    with pytest.raises(InputError, match=named) as error:
        ModelSpec.from_hf(base(family) | change)
    assert "\n" not in str(error.value)


def test_a_window_that_never_closes_is_no_window():
    spec = ModelSpec.from_hf(base("mistral"))
    assert ModelSpec.from_hf(base("mistral") | {"sliding_window": 4096}).kinds == spec.kinds
    absent = base("mistral") | {"max_position_embeddings": 8192}
    del absent["sliding_window"]  # transformers then slides over 4096 tokens
    assert spec.windows == (None,) and ModelSpec.from_hf(absent).windows == (4096,)
    unused = QWEN_WINDOW | {"use_sliding_window": False}
    assert ModelSpec.from_hf(base("qwen2") | unused).num_layers == 2
    no_layer = QWEN_WINDOW | {"max_window_layers": 2}
    assert ModelSpec.from_hf(base("qwen2") | no_layer).num_layers == 2


def test_layers_take_turns():
    gemma3, smollm3 = ModelSpec.from_hf(base("gemma3")), ModelSpec.from_hf(base("smollm3"))
    assert [gemma3.kind(layer).window for layer in range(7)] == [6, 6, None, 6, 6, None, 6]
    assert [gemma3.kind(layer).rope.theta for layer in (1, 2)] == [1e4, 1e6] and gemma3.kind(2).rope.factor == 4
    assert len(gemma3.kinds) == 3 and gemma3.windows == (6, None)
    assert [smollm3.kind(layer).rope is None for layer in range(5)] == [False, False, False, True, False]
    released = dict(base("gemma3"), sliding_window_pattern=6)  # as Google's files have it
    del released["layer_types"]
    assert [kind.window for kind in ModelSpec.from_hf(released | {"num_hidden_layers": 26}).kinds] == [6] * 5 + [None]
    wide = ModelSpec.from_hf(base("gemma3") | {"sliding_window": 5000})  # than all positions
    again = ModelSpec.from_hf(dataclasses.replace(wide, hf_json="{}").to_hf())
    assert wide.windows == (None,) and again.kinds == wide.kinds


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"block_length": 0}, "block_length must be positive"),
        ({"block_length": 4.0}, "whole number"),
        ({"mask_token_id": -1}, "negative"),
        ({"pattern": "causal"}, "pattern 'causal'"),
        ({"alignment": "left"}, "alignment 'left'"),
        ({"prefill": "none"}, "prefill 'none'"),
    ],
)
def test_a_conversion_that_means_nothing_is_refused(change, named):
    with pytest.raises(InputError, match=named):
        dataclasses.replace(CONVERSION, **change)
