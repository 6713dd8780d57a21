"""Questions that every machine with Python can ask a chat model: about its standard library's documentation, and about
things. A hash of a question's subject decides whether all that is asked about it is held out."""

import random
import re

from edlm_jax.data.split import belongs_to_test, check_split
from edlm_jax.data.stdlib import StdlibSource

_DOCUMENTED = re.compile(r'^ *(?:def|class) (\w+)[^\n]*:\n +"""([A-Z][^\n"]{20,160})$', re.MULTILINE)
_ABOUT_CODE = (
    "Explain in simple words what this means: {text}",
    "What would a Python function named {name} do, if its documentation says: {text}",
    "Write a Python function {name}. {text}",
    "Give three examples of when this is useful: {text}",
    "Rewrite this sentence in other words: {text}",
    "Ask a question that this sentence answers: {text}",
)
_ABOUT_THINGS = (
    "What is {name}?",
    "List five facts about {name}.",
    "Write a short story about {name}.",
    "Why does {name} matter to people?",
    "Explain {name} to a child.",
    "Write a poem of four lines about {name}.",
)
_THINGS = (
    "the moon, a river, bread, a bicycle, the sea, a library, winter, music, a bridge, honey, a volcano, the heart, "
    "a market, silence, a whale, electricity, a garden, money, a train, the desert, friendship, glass, a clock, rain, "
    "a mountain, sleep, a letter, iron, a school, the wind, coffee, a map, gravity, a forest, chess, salt, a lighthouse"
).split(", ")


def questions(split: str, count: int) -> list[str]:
    """`count` of them in one line each, drawn from the "train" or the "test" split; fewer where there are no more."""
    check_split(split, "questions")
    documented = {found for text in StdlibSource() for found in _DOCUMENTED.findall(text["text"])}
    asked = [(text, form.format(name=name, text=text)) for name, text in sorted(documented) for form in _ABOUT_CODE]
    asked += [(name, form.format(name=name)) for name in _THINGS for form in _ABOUT_THINGS] * 10
    kept = [question for subject, question in asked if belongs_to_test(subject) == (split == "test")]
    return list(dict.fromkeys(random.Random(0).sample(kept, len(kept))))[:count]
