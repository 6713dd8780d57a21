"""Decoding on a mesh of eight CPU devices gives one device's tokens; weights are held once a group of devices."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

from edlm_jax import generate
from edlm_jax.benchmarks.hlo import collectives
from edlm_jax.commands.main import main
from edlm_jax.decoding import Decoder, parse_mode
from edlm_jax.decoding.engine import Run, decode_whole
from edlm_jax.errors import InputError
from edlm_jax.models.backend import CpuKernels, Xla
from edlm_jax.models.cache import DecodingWeights
from edlm_jax.parallel.mesh import decoding_mesh
from edlm_jax.parallel.sharding import MESH_AXES, param_shardings
from tests.compilations import twice
from tests.decoding.tiny import CONFIG, EOS, make_model, prompts
from tests.seeds import fresh_rng

MODES = ("ar", "diffusion:threshold=0.4", "diffusion:threshold=0.4,commit=separate,sub_block_length=2")
MODES += ("self_speculation", "quadratic_speculation", "prompt_lookup", "mars")
MODES += ("psd:threshold=0.4", "multi_block:threshold=0.4", "dmax:threshold=0.2")


def put_on(mesh, model):
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, jax.device_put(state, param_shardings(mesh, state)))


@pytest.fixture(scope="module")
def models():
    """One model on one device and on tensor 2 x data 4; its vocabulary is shared out, too."""
    model = make_model("shifted", vocab_size=64)
    return model, put_on(decoding_mesh(tensor=2), model)


@pytest.mark.filterwarnings("ignore:.*reads next tokens from a causal stream")
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_one_devices_tokens(models, mode):
    given = prompts(fresh_rng(), [1, 6, 11, 3, 5])  # three rows short of what the groups of devices share evenly
    one, eight = (generate(model, given, mode=mode, max_new_tokens=11, eos_id=EOS, seed=3) for model in models)
    assert eight == one and len(eight.tokens) == 5


@pytest.mark.filterwarnings("ignore:.*reads next tokens from a causal stream")
@pytest.mark.parametrize("mode", ["ar", "diffusion"])
def test_sampled_and_watched_rows_are_one_devices_too(models, mode):
    given, seen = prompts(fresh_rng(), [2, 7, 4]), []
    settings = dict(mode=mode, threshold=0.3, temperature=0.7, max_new_tokens=9, seed=[5, 6, 7])
    one, eight = generate(models[0], given, **settings), generate(models[1], given, on_block=seen.append, **settings)
    assert eight == one and seen[-1] == one.tokens


def test_a_training_mesh_and_heads_that_do_not_divide(models):
    mesh = jax.make_mesh((1, 2, 4, 1), MESH_AXES, axis_types=(AxisType.Auto,) * 4)  # two key heads stay whole
    given = prompts(fresh_rng(), [2, 9, 3])
    settings = dict(max_new_tokens=9, threshold=0.4)
    assert generate(put_on(mesh, models[0]), given, **settings) == generate(models[0], given, **settings)


def test_a_group_of_devices_holds_the_weights_once_and_sends_activations_alone(models, monkeypatch):
    runs, whole = [], Run.whole
    monkeypatch.setattr(Run, "whole", lambda self: (runs.append(self), whole(self))[1])
    decoder = Decoder(models[1])
    decoder(prompts(fresh_rng(), [6] * 8), parse_mode("diffusion"), limit=16)
    norms, rest = [], []
    for path, x in jax.tree_util.tree_leaves_with_path(decoder.weights):
        (norms if "norm" in str(path) else rest).append(x)
    assert rest and all(x.sharding.shard_shape(x.shape) != x.shape for x in rest)
    here = sum(x.addressable_shards[0].data.nbytes for x in norms + rest)
    assert here == sum(x.nbytes for x in norms) + sum(x.nbytes for x in rest) / 2
    (run,) = runs
    with jax.set_mesh(run.weights.mesh):
        lowered = jax.jit(decode_whole.function, static_argnames="settings").lower(*vars(run).values())
        state = jax.eval_shape(run.settings.program(run.weights, run.request).begin)
    found = collectives(lowered.compile().as_text())
    x_BTD, cache_BKSH = 2 * 12 * CONFIG["hidden_size"] * 4, state.cache.k_BKSH[0].size * 4 / 8
    most = max(x_BTD, cache_BKSH)
    assert found.keys() <= {"all-reduce", "all-gather"}, found
    assert found["all-reduce"]["bytes"] <= found["all-reduce"]["count"] * most, found


def test_generate_lays_a_model_out_once_until_it_changes(models, monkeypatch):
    laid_out, lay_out = [], DecodingWeights.of
    monkeypatch.setattr(DecodingWeights, "of", lambda *args, **kwargs: laid_out.append(1) or lay_out(*args, **kwargs))
    for model in (make_model(), put_on(decoding_mesh(tensor=2), make_model())):
        laid_out.clear()
        assert not twice(lambda model=model: generate(model, [[1, 2, 3]], max_new_tokens=4))
        assert len(laid_out) == 1
        before = generate(model, [[1, 2, 3]], max_new_tokens=8)
        model.head_DV[...] = -model.head_DV[...]
        assert generate(model, [[1, 2, 3]], max_new_tokens=8) != before and len(laid_out) == 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_decoder_that_takes_a_model_never_holds_two(dtype, monkeypatch):
    """Layers that are laid out already and those that are not are one model's: what is beside them is two layers."""
    model, other = (make_model(num_hidden_layers=8) for _ in range(2))
    model.dtype = other.dtype = dtype
    layers, live = sum(x.nbytes for x in jax.tree.leaves(nnx.state(model.layers))), []
    for backend in (Xla, CpuKernels):
        lay = lambda *args, lay=backend.lay: (live.append(live_bytes()), lay(*args))[1]  # noqa: E731
        monkeypatch.setattr(backend, "lay", lay)
    before = live_bytes()
    taken = Decoder(model, take=True)
    around = sum(x.nbytes for x in jax.tree.leaves(taken.weights) if x.ndim > 1 and CONFIG["vocab_size"] in x.shape)
    assert max(live) <= before + around + layers * 2 // 8, (max(live) - before - around, layers)
    given, settings = prompts(fresh_rng(), [2, 9]), dict(max_new_tokens=6, threshold=0.4)
    assert generate(taken, given, **settings) == generate(other, given, **settings)
    with pytest.raises(RuntimeError, match="deleted"):
        model(np.ones((1, 3), np.int32))


def live_bytes():
    return sum(x.nbytes for x in jax.live_arrays() if not x.is_deleted())


def test_the_command_decodes_on_all_devices(tiny_converted_dir, capsys):
    def completions(*more):
        argv = ["generate", f"--model={tiny_converted_dir}", "--prompt=ab", "--prompt=cde", "--threshold=0.01"]
        code, (out, err) = main([*argv, "--max-new-tokens=9", "--json", *more]), capsys.readouterr()
        assert code == 0, err
        return json.loads(out)["completions"]

    assert completions("--tensor=2") == completions() == completions("--tensor=1")
    assert main(["evaluate", f"--model={tiny_converted_dir}", "--tensor=3", "--count=2"]) == 2
    assert "cannot be shared out to 3 of 8 devices" in capsys.readouterr().err
    with pytest.raises(InputError, match="choose a divisor"):
        decoding_mesh(0)
