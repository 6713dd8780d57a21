"""Generated tasks with one exact answer: what a small model can be held to, by string equality.

    count     count 37 by 3 for 5 ->        37 40 43 46 49
    sums      add 3+4 9+8 0+5 ->            7 17 5
    sort      sort q b x a ->               a b q x
    reverse   reverse q b x a ->            a x b q
    lookup    get size , name from name k d x ; size p a w ->    size p a w ; name k d x
    brackets  close ( [ { } ( ->            ) ] )
    spell     spell 407 ->                  four zero seven
    init      def __init__(self, name, size):\\n           the two assignments
    record    def record(name, size):\\n    return         {"name": name, "size": size}

An example depends on (seed, kind, index) alone. A prompt belongs to the test split exactly when its hash says so: no
test prompt can have been trained on, however small a kind's space of prompts is.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from edlm_jax.data import reading
from edlm_jax.data.split import belongs_to_test, check_split
from edlm_jax.errors import InputError

NAMES = tuple(
    """name size path line key data text mode code type time file node args value index start stop count left right
    first last width color state level owner parent target source result message default""".split()
)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLOSER = {"(": ")", "[": "]", "{": "}"}

Example = tuple[str, str]


def _count(rng: random.Random) -> Example:
    start, step, terms = rng.randrange(100), rng.choice((1, 2, 3, 5, 10)), rng.randint(3, 6)
    answer = " ".join(str(start + step * i) for i in range(terms))
    return f"count {start} by {step} for {terms} ->", f" {answer}"


def _sums(rng: random.Random) -> Example:
    pairs = [(rng.randrange(10), rng.randrange(10)) for _ in range(rng.randint(3, 6))]
    return "add " + " ".join(f"{a}+{b}" for a, b in pairs) + " ->", "".join(f" {a + b}" for a, b in pairs)


def _order(verb: str, order: Callable[[list[str]], Iterable[str]], rng: random.Random) -> Example:
    letters = rng.sample(LETTERS, rng.randint(4, 7))
    return f"{verb} {' '.join(letters)} ->", "".join(f" {letter}" for letter in order(letters))


def _lookup(rng: random.Random) -> Example:
    names, letters = rng.sample(NAMES, rng.randint(3, 5)), rng.sample(LETTERS, 15)
    table = {name: f" {name} {' '.join(letters[3 * row : 3 * row + 3])}" for row, name in enumerate(names)}
    wanted = rng.sample(names, 2)
    prompt = f"get {' , '.join(wanted)} from{' ;'.join(table.values())} ->"
    return prompt, " ;".join(table[name] for name in wanted)


def _brackets(rng: random.Random) -> Example:
    depth, walk, stack = rng.randint(3, 6), [], []
    while len(stack) < depth:
        if stack and rng.random() < 0.2:
            walk.append(CLOSER[stack.pop()])
        else:
            stack.append(rng.choice("([{"))
            walk.append(stack[-1])
    return f"close {' '.join(walk)} ->", "".join(f" {CLOSER[opener]}" for opener in reversed(stack))


def _spell(rng: random.Random) -> Example:
    digits = [rng.randrange(10) for _ in range(rng.randint(3, 6))]
    return f"spell {''.join(map(str, digits))} ->", "".join(f" {DIGITS[digit]}" for digit in digits)


def _init(rng: random.Random) -> Example:
    names = rng.sample(NAMES, rng.randint(2, 4))
    body = "\n".join(f"        self.{name} = {name}" for name in names)
    return f"def __init__(self, {', '.join(names)}):\n", body


def _record(rng: random.Random) -> Example:
    names = rng.sample(NAMES, rng.randint(2, 4))
    items = ", ".join(f'"{name}": {name}' for name in names)
    return f"def record({', '.join(names)}):\n    return", f" {{{items}}}"


_ORDERED = {"sort": partial(_order, "sort", sorted), "reverse": partial(_order, "reverse", reversed)}
_OTHERS = dict(lookup=_lookup, brackets=_brackets, init=_init, record=_record, spell=_spell)
GENERATORS: dict[str, Callable[[random.Random], Example]] = dict(count=_count, sums=_sums, **_ORDERED, **_OTHERS)
KINDS = tuple(GENERATORS)  # of the embedded model
READING = tuple(reading.GENERATORS)  # of models that know English, see reading.py
GENERATORS |= reading.GENERATORS


def generate_example(kind: str, seed: int, index: int, split: str = "train") -> dict[str, str]:
    """The index-th example of a kind: dict(prompt, response, kind), from (kind, seed, index) alone."""
    # random.Random seeded with a string gives the same numbers on every Python we run on; numpy promises less.
    rng = random.Random(f"{kind}/{seed}/{index}")
    while True:
        prompt, response = GENERATORS[kind](rng)
        if belongs_to_test(prompt) == (split == "test"):
            return dict(prompt=prompt, response=response, kind=kind)


class TaskSource(Sequence):
    """A random-access source of `size` examples that goes round its kinds."""

    def __init__(self, kinds: tuple = KINDS, seed: int = 0, size: int = 1_000_000, split: str = "train"):
        self.kinds, self.seed, self.size, self.split = tuple(kinds) or KINDS, seed, size, split
        if unknown := [kind for kind in self.kinds if kind not in GENERATORS]:
            raise InputError(f"unknown task kind {unknown[0]!r}; known kinds: {', '.join(GENERATORS)}")
        check_split(split, "task")
        if size < 1:
            raise InputError(f"a task source needs at least one example, not {size}")

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, str]:
        turn, which = divmod(range(self.size)[index], len(self.kinds))
        return generate_example(self.kinds[which], self.seed, turn, self.split)
