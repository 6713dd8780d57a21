"""The generated tasks: reproducible, split cleanly, and answered as an independent solver answers them."""

import re

import pytest

from edlm_jax.data.split import belongs_to_test
from edlm_jax.data.tasks import KINDS, NAMES, TaskSource, generate_example
from edlm_jax.errors import InputError

CLOSING = {"(": ")", "[": "]", "{": "}"}


def solve_brackets(walk: str) -> str:
    """Delete matched pairs until none is left; what remains, mirrored, is the answer."""
    rest = walk.replace(" ", "")
    while (shorter := re.sub(r"\(\)|\[\]|\{\}", "", rest)) != rest:
        rest = shorter
    return "".join(f" {CLOSING[opener]}" for opener in rest[::-1])


def solve(kind: str, prompt: str) -> str:
    """The answer to a prompt, read from its text alone."""
    words = prompt.removesuffix(" ->").split(" ")[1:]
    if kind == "count":
        start, step, terms = int(words[0]), int(words[2]), int(words[4])
        return "".join(f" {number}" for number in range(start, start + step * terms, step))
    if kind == "sums":
        return "".join(f" {eval(pair)}" for pair in words)
    if kind == "sort":
        return " " + " ".join(sorted(words))
    if kind == "reverse":
        return " " + " ".join(words[::-1])
    if kind == "lookup":
        return " ;".join(re.search(rf" {name} \w \w \w(?= ;| ->)", prompt)[0] for name in words[:3:2])
    if kind == "spell":
        names = dict(zip("0123456789", "zero one two three four five six seven eight nine".split(), strict=True))
        return "".join(f" {names[digit]}" for digit in words[0])
    if kind == "brackets":
        return solve_brackets(" ".join(words))
    raise AssertionError(kind)


def run_init(prompt: str, response: str, values: list[int]) -> dict[str, int]:
    """The attributes that the completed __init__ really sets."""
    scope: dict = {}
    exec(f"class Thing:\n    {prompt}{response}", scope)
    return vars(scope["Thing"](*values))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_answer_is_right(kind, split):
    for index in range(200):
        example = generate_example(kind, 11, index, split)
        prompt, response = example["prompt"], example["response"]
        if kind in ("init", "record"):
            names = re.findall(r"\w+", prompt.split("(")[1].split(")")[0].removeprefix("self, "))
            values = list(range(5, 5 + len(names)))
            if kind == "init":
                assert run_init(prompt, response, values) == dict(zip(names, values, strict=True))
            else:
                scope: dict = {}
                exec(prompt + response, scope)
                assert list(scope["record"](*values).items()) == list(zip(names, values, strict=True))
        else:
            assert response == solve(kind, prompt)


def test_an_example_depends_on_kind_seed_and_index_alone():
    source, again = TaskSource(seed=3, size=64), TaskSource(seed=3, size=64)
    backwards = [again[index] for index in reversed(range(64))][::-1]
    assert [source[index] for index in range(64)] == backwards
    assert source[0] == generate_example(KINDS[0], 3, 0)
    assert TaskSource(KINDS[:1], seed=3, size=9)[1] == source[len(KINDS)]
    assert TaskSource(seed=4, size=64)[5] != source[5]


def test_examples_are_what_they_were_when_the_checkpoint_was_trained():
    prompt = "get right , code from right v a q ; node u k z ; code n x j ; text i w l ->"
    assert generate_example("lookup", 0, 0) == dict(prompt=prompt, response=" right v a q ; code n x j", kind="lookup")


@pytest.mark.parametrize("kind", KINDS)
def test_no_test_prompt_is_ever_trained_on(kind):
    train = {generate_example(kind, 0, index)["prompt"] for index in range(3000)}
    test = {generate_example(kind, seed, index, "test")["prompt"] for seed in (0, 1) for index in range(100)}
    assert not train & test
    assert all(map(belongs_to_test, test)) and not any(map(belongs_to_test, train))
    assert len(test) > 60  # the held-out space is not a handful of prompts


def test_a_source_goes_round_its_kinds_and_ends():
    source = TaskSource(("sort", "init", "sums"), seed=1, size=7, split="test")
    with pytest.raises(IndexError):
        source[7]
    assert [example["kind"] for example in source] == ["sort", "init", "sums"] * 2 + ["sort"]
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("bad", [dict(kinds=("sort", "chess")), dict(split="validation"), dict(size=0)])
def test_bad_settings_are_refused(bad):
    with pytest.raises(InputError, match="chess|validation|0"):
        TaskSource(**bad)
