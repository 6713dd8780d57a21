"""Counts what jax traces and compiles, by what it tells those who listen."""

from collections.abc import Callable

import jax

compiled: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, seconds, **_: compiled.append(name) if name.startswith("/jax/core/compile/") else None
)


def twice(call: Callable) -> list[str]:
    """What the second call traces and compiles; of the first one the listener must have heard."""
    jax.clear_caches()
    call()
    assert compiled, "the listener hears of nothing"
    compiled.clear()
    call()
    return compiled
