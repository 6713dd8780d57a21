"""How fast a compiled program could be at best: what it computes and moves, over the peaks of the device.

A bound, never a measurement: everything is taken to overlap, and every unit to run at its published peak.
"""

from collections.abc import Mapping
from typing import Any

from edlm_jax.parallel.devices import Device

_ONCE = ("all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def link_bytes(collectives: Mapping[str, Mapping[str, int]]) -> int:
    """What goes over a device's links, one way; an all-reduce sends its array twice. (n - 1) / n is taken for 1."""
    sizes = {kind: found["bytes"] for kind, found in collectives.items()}
    return sum(sizes.get(kind, 0) for kind in _ONCE) + 2 * sizes.get("all-reduce", 0)


def speed_bound(
    device: Device, *, flops: float, memory_bytes: int, link_bytes: int, useful_flops: float
) -> dict[str, Any]:
    """Milliseconds of products, memory and links, the longest of them, and the MFU if nothing else cost time.

    All of one device; empty where the table has no peaks.
    """
    if None in (device.peak_flops, device.memory_rate, device.link_rate):
        return {}
    times = {
        "products": 1e3 * flops / device.peak_flops,
        "memory": 1e3 * memory_bytes / device.memory_rate,
        "links": 1e3 * link_bytes / device.link_rate,
    }
    longest = max(times, key=times.__getitem__)
    mfu = useful_flops / (device.peak_flops * times[longest] / 1e3)
    return {f"{name}_ms": value for name, value in times.items()} | dict(bound_by=longest, mfu_at_best=mfu)
