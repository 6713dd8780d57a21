"""Collectives counted in a program's text: through calls and loops, with the bytes of the larger side."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from edlm_jax.benchmarks.hlo import collectives, shapes

TEXT = """HloModule jit_step, entry_computation_layout={(f32[4]{0})->f32[4]{0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%inner (p: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %p = (s32[], bf16[8,16]{1,0}) parameter(0)
  %x = bf16[8,16]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %part = bf16[2,16]{1,0} reduce-scatter(%x), channel_id=3, dimensions={0}, to_apply=%add
  ROOT %t = (s32[], bf16[8,16]{1,0}) tuple(%i, %x)
}

%outer (p.1: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %p.1 = (s32[], bf16[8,16]{1,0}) parameter(0)
  ROOT %w = (s32[], bf16[8,16]{1,0}) while(%p.1), condition=%three, body=%inner
}

%stop (p.2: (s32[], bf16[8,16])) -> pred[] {
  %p.2 = (s32[], bf16[8,16]{1,0}) parameter(0)
  ROOT %done = pred[] constant(true)
}

%three (p.3: (s32[], bf16[8,16])) -> pred[] {
  %p.3 = (s32[], bf16[8,16]{1,0:T(8,128)(2,1)}) parameter(0)
  %i.3 = s32[]{:T(128)} get-tuple-element(%p.3), index=0
  %limit = s32[]{:T(128)} constant(3)
  ROOT %less = pred[]{:T(512)} compare(%i.3, %limit), direction=LT
}

%all-reduce-scatter.1 (x.1: f32[8]) -> f32[2] {
  %x.1 = f32[8]{0} parameter(0)
  %whole = f32[8]{0} all-reduce(%x.1), channel_id=4, to_apply=%add
  ROOT %piece = f32[2]{0} dynamic-slice(%whole, %rank), dynamic_slice_sizes={2}
}

ENTRY %main (arg: f32[4]) -> f32[4] {
  %arg = f32[4]{0} parameter(0)
  %start = (f32[4]{0}, f32[16]{0}) all-gather-start(%arg), channel_id=1, dimensions={0}
  %gathered = f32[16]{0} all-gather-done(%start)
  %w.1 = (s32[], bf16[8,16]{1,0}) while(%init), condition=%stop, body=%outer, backend_config={"known_trip_count":{"n":"5"}}
  %w.2 = (s32[], bf16[8,16]{1,0}) while(%init), condition=%stop, body=%outer
  %s = f32[2]{0} fusion(%arg), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %r = f32[4]{0} all-reduce(%arg), channel_id=2, to_apply=%add
}
"""  # noqa: E501


def test_collectives_of_a_program_by_hand():
    assert collectives(TEXT) == {
        "all-gather": dict(count=1, bytes=16 * 4),
        "all-reduce": dict(count=1, bytes=4 * 4),
        "reduce-scatter": dict(count=(5 + 1) * 3 + 1, bytes=(5 + 1) * 3 * 8 * 16 * 2 + 8 * 4),
    }
    assert shapes(TEXT) == {(4,), (16,), (8, 16), (2, 16), (8,), (2,)}


def test_collectives_of_a_program_that_was_compiled():
    """Four layers scanned, weights split: each is gathered in its turn, and their product is summed once."""
    mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, P(None, "fsdp", None))
    w_LDD = jax.ShapeDtypeStruct((4, 32, 32), jnp.float32, sharding=split)
    x_BD = jax.ShapeDtypeStruct((8, 32), jnp.float32, sharding=NamedSharding(mesh, P("fsdp", None)))

    @jax.jit
    def run(w_LDD, x_BD):
        def layer(x_BD, w_DD):
            w_DD = jax.lax.with_sharding_constraint(w_DD, NamedSharding(mesh, P(None, None)))
            return jnp.tanh(x_BD @ w_DD), None

        return jax.lax.scan(layer, x_BD, w_LDD)[0].sum()

    found = collectives(run.lower(w_LDD, x_BD).compile().as_text())
    assert found["all-gather"] == dict(count=4, bytes=4 * 32 * 32 * 4)
    assert found["all-reduce"]["bytes"] == np.dtype(np.float32).itemsize


def test_a_combined_start_counts_all_that_it_moves():
    text = """ENTRY %main (arg: f32[4]) -> f32[4] {
  %arg = f32[4]{0} parameter(0)
  %g = ((bf16[64,512]{1,0}, bf16[32,512]{1,0}), (bf16[512,512]{1,0}, bf16[256,512]{1,0})) all-gather-start(%a, %b), dimensions={0}
  %s = ((bf16[512,384]{1,0}), bf16[64,384]{1,0}) reduce-scatter-start(%arg), to_apply=%add
  %r = (f32[128]{0}, f32[8]{0}) all-reduce-start(%a, %b), to_apply=%add
  ROOT %two = (f32[128]{0}, f32[8]{0}) all-reduce(%a, %b), to_apply=%add
}
"""  # noqa: E501
    found = collectives(text)
    assert found["all-gather"] == dict(count=1, bytes=2 * 512 * (512 + 256))
    assert found["reduce-scatter"] == dict(count=1, bytes=2 * 512 * 384)
    assert found["all-reduce"] == dict(count=2, bytes=2 * 4 * (128 + 8))
