"""The loop around every mode's program: prefill, go on until every row is done, whole or in pieces.

A program is the traced functions of one decoding (program.py): `begin() -> state`; `turn(state)`
settles something in each row that goes on; `advance(state)` is what someone who watches waits for; `outcome(state)` is
what is left when nobody reads more. A state's `done_B` says which rows have ended.
"""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Self

import jax

from edlm_jax.decoding.compiled import compiled
from edlm_jax.decoding.generation import Generation
from edlm_jax.models.cache import DecodingWeights
from edlm_jax.parallel.mesh import on_mesh


@compiled(static_argnames="settings")
def decode_whole(weights: DecodingWeights, request, settings):
    """Prefills, then decodes until every row is done; what nobody reads then, as the cache, does not come out."""
    program = settings.program(weights, request)
    return program.outcome(jax.lax.while_loop(lambda state: ~state.done_B.all(), program.turn, program.begin()))


@compiled(static_argnames="settings")
def begin(weights: DecodingWeights, request, settings):
    """Prefills: `decode_whole` in pieces, for someone who watches."""
    return settings.program(weights, request).begin()


@compiled(static_argnames="settings", donate_argnames="state")
def advance(weights: DecodingWeights, request, settings, state):
    """Goes on until there is something to see, or all rows are done."""
    return settings.program(weights, request).advance(state)


@dataclass(frozen=True)
class Run:
    """One decoding: `settings` name the program and are compiled in, `request` holds its arrays."""

    weights: DecodingWeights
    request: Any
    settings: Any

    def whole(self) -> Generation:
        """All of it, in parts beside one another where the machine has cores for them.

        Threads of their own start the parts behind the first, and jax's context managers are a thread's: beside the
        mesh, which each part enters, none of what the caller has set by them (as a precision of products) reaches them.
        """
        first, *others = parts = self.parts()
        states = [first._call(decode_whole)]  # compiles for all of them, and does not wait
        states += beside([functools.partial(part._call, decode_whole) for part in others])
        return Generation.joined([part.collect(state) for part, state in zip(parts, states, strict=True)])

    def parts(self) -> list[Self]:
        """The same decoding by rows, as many a part: a row's bits do not depend on the rows beside it."""
        rows, given = len(self.request.pad_B), vars(self.request)
        count = self.weights.backend.parts(rows, self.weights.nbytes)
        if count == 1:
            return [self]
        # What has rows says so by its name, as limit_B1 does and ends_E does not.
        of_rows = [name for name in given if name.rpartition("_")[2].startswith("B") and given[name] is not None]
        cuts = [slice(i * rows // count, (i + 1) * rows // count) for i in range(count)]
        requests = [replace(self.request, **{name: given[name][cut] for name in of_rows}) for cut in cuts]
        return [replace(self, request=request) for request in requests]

    def begin(self):
        """The state after the prefill."""
        return self._call(begin)

    def advance(self, state):
        """The next state worth a look; the old one is gone."""
        return self._call(advance, state)

    def _call(self, program: Callable, *state):
        with on_mesh(self.weights.mesh):
            return program(self.weights, self.request, self.settings, *state)

    def collect(self, state) -> Generation:
        """What a state holds so far."""
        return state.settled(self.request).generation()


def beside(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """What these calls give, each of which starts a compiled program."""
    futures = [thread(index).submit(call) for index, call in enumerate(calls)]
    return [future.result() for future in futures]


@functools.cache
def thread(index: int) -> ThreadPoolExecutor:
    """One that stays for later calls: jax's CPU client runs in order, one after another, what one thread dispatches."""
    return ThreadPoolExecutor(1, f"decode-{index}")
