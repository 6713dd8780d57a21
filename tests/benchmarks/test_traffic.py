"""What a program moves in memory, counted in its text, and the bound on speed that follows."""

import jax
import jax.numpy as jnp
import pytest

from edlm_jax.benchmarks.hlo import link_bytes, speed_bound, traffic
from edlm_jax.parallel.devices import Device


def traffic_of(function, *args) -> int:
    return traffic(jax.jit(function).lower(*args).compile().as_text())


def test_a_loop_of_products_reads_its_matrix_at_every_turn():
    x, w, turns = jnp.ones((64, 256)), jnp.ones((256, 256)), 7
    moved = traffic_of(lambda x, w: jax.lax.fori_loop(0, turns, lambda _, x: jnp.tanh(x @ w), x), x, w)
    least = turns * (w.nbytes + 2 * x.nbytes)
    assert least <= moved <= 2 * least


def test_a_slice_of_a_stack_counts_as_a_slice():
    layers, width = 32, 64
    stack = jnp.ones((layers, width, width))

    def scan(x, stack):
        return jax.lax.scan(lambda x, w: ((y := jnp.tanh(x @ w)), y), x, stack)  # reads slices, writes slices

    moved = traffic_of(scan, jnp.ones((width, width)), stack)
    assert 2 * stack.nbytes <= moved <= 16 * stack.nbytes  # the whole stack at every turn would be 64 times


TEXT = """HloModule jit_step

%cut (p0: bf16[9,64], p1: s32[]) -> bf16[1,64] {
  %p0 = bf16[9,64]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %b = bf16[9,64]{0,1} bitcast(%p0)
  ROOT %d = bf16[1,64]{1,0} dynamic-slice(%b, %p1, %p1), dynamic_slice_sizes={1,64}
}

%put (p2: bf16[9,64], p3: bf16[1,64], p4: s32[]) -> bf16[9,64] {
  %p2 = bf16[9,64]{1,0} parameter(0)
  %p3 = bf16[1,64]{1,0} parameter(1)
  %p4 = s32[] parameter(2)
  ROOT %u = bf16[9,64]{1,0} dynamic-update-slice(%p2, %p3, %p4, %p4)
}

ENTRY %main (x: bf16[9,64], i: s32[]) -> bf16[9,64] {
  %x = bf16[9,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %part = bf16[1,64]{1,0} fusion(%x, %i), kind=kLoop, calls=%cut
  %near = bf16[1,64]{1,0:T(8,128)(2,1)S(1)} copy(%part)
  ROOT %out = bf16[9,64]{1,0} fusion(%x, %near, %i), kind=kLoop, calls=%put
}
"""


def test_what_is_cut_or_kept_near_is_counted_by_hand():
    row, index = 64 * 2, 4
    assert traffic(TEXT) == (2 * row + index) + row + (row + index)  # cut; copied away; written from near memory


def test_the_longest_binds():
    device = Device(peak_flops=1e12, memory_rate=1e9, link_rate=1e8)
    found = speed_bound(device, flops=4e9, memory_bytes=2_000_000, link_bytes=300_000, useful_flops=3e9)
    assert (found["products_ms"], found["memory_ms"], found["links_ms"]) == pytest.approx((4.0, 2.0, 3.0))
    assert found["bound_by"] == "products" and found["mfu_at_best"] == pytest.approx(0.75)
    assert speed_bound(Device(), flops=1.0, memory_bytes=1, link_bytes=1, useful_flops=1.0) == {}
    assert link_bytes({"all-gather": dict(bytes=3), "all-reduce": dict(bytes=5)}) == 13
