"""A two-joint arm that reaches for points: continuous states and actions as words of one letter, a bin each.

    python -m edlm_jax.data.reach --out=runs/actions/train.jsonl --count=1000 --split=train

    {"prompt": "reach u v to r e ->", "response": " a a a a a a a a a a a j a m"}

A prompt says the joints' angles and where the upper arm sees the target (how far along it, how far beside it), a
response both joints' velocities in STEPS steps: one chunk of actions, which the arm carries out before it looks again.
The exact controller goes straight for the angles that reach the target, as fast as the joints do, and stays there.
Actions as tokens, a chunk at a time: BlockVLA (arXiv 2605.13382).
"""

import json
import math
import random
from pathlib import Path

import numpy as np
from absl import app, flags

from edlm_jax.data.split import belongs_to_test, check_split
from edlm_jax.errors import InputError

LETTERS = "abcdefghijklmnopqrstuvwxy"  # an odd number: the middle bin of velocities is standing still
LINK = 0.5  # metres, of both; the base is at (0, 0)
LOW_J, HIGH_J = np.array([-math.pi / 2, 0.2]), np.array([math.pi / 2, 2.8])  # radians: the elbow bends one way
FASTEST = 1.0  # radians a second
STEP_SECONDS = 0.2
STEPS = 7  # 14 words, and the end


def write_bins(values: np.ndarray, low: np.ndarray | float, high: np.ndarray | float) -> str:
    """Each number's bin of those that divide [low, high], as a word; the nearest of a number outside."""
    share = (np.asarray(values) - low) / (np.asarray(high) - low)
    bins = np.clip((share * len(LETTERS)).astype(int), 0, len(LETTERS) - 1)
    return "".join(f" {LETTERS[index]}" for index in bins.ravel())


def read_bins(text: str, low: np.ndarray | float, high: np.ndarray | float, pairs: int = 1) -> np.ndarray:
    """The middles of the bins that words name, [pairs, 2]; InputError for any other number of words, or other words."""
    bins = [LETTERS.find(word) if len(word) == 1 else -1 for word in text.split()]
    if len(bins) != 2 * pairs or -1 in bins:
        raise InputError(f"{text!r} are not {2 * pairs} bins: write one of {LETTERS} for each number")
    return low + (np.reshape(bins, (pairs, 2)) + 0.5) / len(LETTERS) * (np.asarray(high) - low)


def write_prompt(angles_J: np.ndarray, target_2: np.ndarray) -> str:
    """What the arm sees of itself and of a target at (x, y)."""
    seen_2 = _turn(target_2, -angles_J[0])
    return f"reach{write_bins(angles_J, LOW_J, HIGH_J)} to{write_bins(seen_2, -1.0, 1.0)} ->"


def read_prompt(prompt: str) -> tuple[np.ndarray, np.ndarray]:
    """(angles_J, target_2), as exactly as the prompt says them."""
    state, _, target = prompt.removeprefix("reach").removesuffix("->").partition(" to ")
    angles_J, seen_2 = read_bins(state, LOW_J, HIGH_J)[0], read_bins(target, -1.0, 1.0)[0]
    return angles_J, _turn(seen_2, angles_J[0])


def write_actions(velocity_TJ: np.ndarray) -> str:
    """A chunk: step after step, the shoulder's and the elbow's."""
    return write_bins(velocity_TJ, -FASTEST, FASTEST)


def read_actions(text: str) -> np.ndarray:
    """velocity_TJ of a chunk; InputError for what is none."""
    return read_bins(text, -FASTEST, FASTEST, STEPS)


def _turn(point_2: np.ndarray, angle: float) -> np.ndarray:
    """About the base."""
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin], [sin, cos]]) @ point_2


def hand(angles: np.ndarray) -> np.ndarray:
    """Where the hand is, [..., (x, y)], by the joints' angles [..., J]; the elbow's is counted from the upper arm."""
    first, both = angles[..., 0], angles[..., 0] + angles[..., 1]
    return LINK * np.stack([np.cos(first) + np.cos(both), np.sin(first) + np.sin(both)], axis=-1)


def angles_at(target_2: np.ndarray) -> np.ndarray:
    """The joints' angles with the hand at a point, or near one that the joints cannot reach."""
    cosine = (target_2 @ target_2) / (2 * LINK**2) - 1
    elbow = math.acos(min(max(cosine, -1.0), 1.0))
    return np.clip([math.atan2(target_2[1], target_2[0]) - elbow / 2, elbow], LOW_J, HIGH_J)


def simulate(angles_J: np.ndarray, velocity_TJ: np.ndarray) -> np.ndarray:
    """The angles after each step, [T, J]: a joint is no faster than FASTEST and stops at its limits."""
    path = []
    for velocity_J in velocity_TJ:
        angles_J = angles_J + STEP_SECONDS * np.clip(velocity_J, -FASTEST, FASTEST)
        angles_J = np.clip(angles_J, LOW_J, HIGH_J)
        path.append(angles_J)
    return np.array(path)


def control(angles_J: np.ndarray, target_2: np.ndarray) -> str:
    """The exact controller's chunk; it knows what rounding to bins has done to its earlier steps."""
    goal_J, chunk = angles_at(target_2), ""
    for _ in range(STEPS):
        word = write_actions((goal_J - angles_J) / STEP_SECONDS)
        angles_J = simulate(angles_J, read_bins(word, -FASTEST, FASTEST))[-1]
        chunk += word
    return chunk


def generate_example(seed: int, index: int, split: str = "train") -> dict[str, str]:
    """dict(prompt, response), from (seed, index) alone. Half of the training split starts near the target."""
    rng = random.Random(f"reach/{seed}/{index}")
    draw = lambda: np.array([rng.uniform(low, high) for low, high in zip(LOW_J, HIGH_J, strict=True)])  # noqa: E731
    while True:
        goal_J, start_J = draw(), draw()
        if split == "train" and rng.random() < 0.5:
            start_J = np.clip(goal_J + [rng.gauss(0, 0.3), rng.gauss(0, 0.3)], LOW_J, HIGH_J)
        prompt = write_prompt(start_J, hand(goal_J))
        seen_J, target_2 = read_prompt(prompt)  # at the edge the middle of a bin may be out of reach
        reached = np.allclose(hand(angles_at(target_2)), target_2)
        if reached and belongs_to_test(prompt) == (split == "test"):
            return dict(prompt=prompt, response=control(seen_J, target_2))


def main(_: list[str]) -> None:
    """Write the lines."""
    asked = flags.FLAGS
    check_split(asked.split, "reach")
    examples = (generate_example(asked.seed, index, asked.split) for index in range(asked.count))
    path = Path(asked.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(example)}\n" for example in examples))
    print(f"{path}: {asked.count} lines")


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "File that receives the lines.", required=True)
    flags.DEFINE_integer("count", 1000, "How many.")
    flags.DEFINE_integer("seed", 0, "Of the draws.")
    flags.DEFINE_string("split", "train", "train, or test: prompts that no training line has.")
    app.run(main)
