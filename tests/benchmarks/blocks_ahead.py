"""How much several blocks in flight could give at most: tokens a forward if blocks ahead knew which guesses will stand.

    python -m tests.benchmarks.blocks_ahead runs/quickstart/model 512 0.95 0.99

At each threshold: `diffusion`; `multi_block`; and `multi_block` whose blocks ahead take every guess that `diffusion`
will settle in its place, however unsure, and no other. That is all a rule can take that keeps the text, forward by
forward, two blocks being in flight of which the second opens once the first has a token.
"""

import sys
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from edlm_jax.decoding import Decoder
from edlm_jax.decoding.blocks import BlockProgram
from edlm_jax.decoding.modes import Diffusion, MultiBlock
from edlm_jax.decoding.modes.mode import option
from edlm_jax.decoding.program import State
from edlm_jax.decoding.windows import window
from edlm_jax.evaluation.compare import compare_accuracy
from edlm_jax.evaluation.tasks import decoded_questions
from edlm_jax.evaluation.tasks.task import Way
from tests.benchmarks.modes import asked


class _Knowing(MultiBlock.program):
    """A row's seed is its number: greedy decoding needs no other."""

    def accept(self, s: State, logits_BTV) -> State:
        mode, C, T = self.mode, self.C, logits_BTV.shape[1]
        proposal, s = self.propose(s, logits_BTV)
        masked_BT = self.open(window(s.tokens_BX, s.start_B, T))
        first = lambda x_BT: x_BT[:, :C]  # noqa: E731
        own_BC = self.request.rule(jax.tree.map(first, proposal), first(masked_BT))
        settled_BX = jnp.asarray(mode.settled)[self.request.seeds_B]
        room_BX = jnp.pad(settled_BX, ((0, 0), (0, self.X)), constant_values=-1)
        stands_BT = proposal.tokens_BC == window(room_BX, s.start_B - self.request.first_B, T)
        active_BT = jnp.arange(T)[None] < s.aside[:, None] * C
        return self.keep(s, proposal.tokens_BC, masked_BT & active_BT & stands_BT.at[:, :C].set(own_BC))


@dataclass(frozen=True)
class Knowing(MultiBlock):
    """Told what stands."""

    name: ClassVar[str] = "knowing"
    program: ClassVar[type[BlockProgram]] = _Knowing
    settled: tuple[tuple[int, ...], ...] = option((), str, "what diffusion settles in each row")


def main(path: str, size: str, *thresholds: str) -> None:
    """Prints a line a threshold."""
    model, tasks, text = asked(path, size)
    questions, decoder = decoded_questions(tasks), Decoder(model)
    prompts, limit = [q.prompt for q in questions], max(q.limit for q in questions)
    how = dict(limit=limit, ends=text.ends, seed=range(len(prompts)))
    for threshold in map(float, thresholds):
        modes = Diffusion(threshold=threshold), MultiBlock(threshold=threshold)
        found = compare_accuracy([Way(decoder, mode, model) for mode in modes], tasks, text, batch_size=64)
        diffusion, several = (f"{way['accuracy']:.3f} @ {way['tokens_per_forward']:.2f}" for way in found)
        plain = decoder(prompts, modes[0], **how)
        settled = tuple(tuple(row) + (-1,) * (limit - len(row)) for row in plain.tokens)
        knowing = decoder(prompts, Knowing(threshold=threshold, settled=settled), **how)
        same = np.mean([a == b for a, b in zip(knowing.tokens, plain.tokens, strict=True)])
        ratio = knowing.tokens_per_forward / plain.tokens_per_forward
        bound = f"at most {ratio:.2f} times, {same:.0%} alike"
        print(f"{threshold:g}  diffusion {diffusion}  multi_block {several}  {bound}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
