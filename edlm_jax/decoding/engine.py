"""The loop around every mode's program: prefill, go on until every row is done, whole or in pieces.

A program is the traced functions of one decoding (blocks.py, left_to_right.py): `begin() -> state`; `turn(state)`
settles something in each row that goes on; `advance(state)` is what someone who watches waits for; `outcome(state)` is
what is left when nobody reads more. A state's `done_B` says which rows have ended.
"""

from dataclasses import dataclass
from typing import Any

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

    @property
    def columns(self) -> int:
        """Of a row in the widest forward of a turn."""
        return self.settings.program(self.weights, self.request).width

    def whole(self) -> Generation:
        """All of it."""
        with on_mesh(self.weights.mesh):
            return self.collect(decode_whole(self.weights, self.request, self.settings))

    def begin(self):
        """The state after the prefill."""
        with on_mesh(self.weights.mesh):
            return begin(self.weights, self.request, self.settings)

    def advance(self, state):
        """The next state worth a look; the old one is gone."""
        with on_mesh(self.weights.mesh):
            return advance(self.weights, self.request, self.settings, state)

    def collect(self, state) -> Generation:
        """What a state holds so far."""
        return self.request.settled(state).generation()
