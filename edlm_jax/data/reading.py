"""Tasks for a chat model that knows English and little else: to say a sentence again, and what a short text says."""

import random
from functools import partial

PEOPLE = "Anna Ben Clara David Emma Frank Grace Henry Ida Jonas Karin Leo Maria Noah Olga Peter".split()
CITIES = "Oslo Rome Paris Cairo Lima Tokyo Berlin Madrid Vienna Boston Dublin Athens Delhi Prague Toronto".split()
JOBS = "nurse baker teacher pilot farmer lawyer painter dentist plumber chef tailor gardener".split()
THINGS = "lamp chair book bottle basket bell ladder mirror kettle blanket bucket candle".split()
COLOURS = "red green blue yellow white black brown orange purple grey".split()
PLACES = "school library harbour mill station museum garden hospital castle market bridge bakery".split()
EVENTS = "concert meeting lesson dinner race wedding exam party play trip".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
ADJECTIVES = "old young tall quiet happy tired clever hungry".split()
VERBS = "carried brought sold moved threw pulled".split()
COUNTS = "two three four five six seven eight nine ten".split()
ASKED = {  # of two names with a value each: a sentence, what is asked about one of them, and what there is of both
    "place": ("{name} lives in {value}.", "Where does {name} live?", PEOPLE, CITIES),
    "day": ("The {name} is on {value}.", "When is the {name}?", EVENTS, DAYS),
    "gift": ("{name} bought a {value}.", "What did {name} buy?", PEOPLE, THINGS),
}

Example = tuple[str, str]  # the prompt, and what the answer has to say


def _copy(rng: random.Random) -> Example:
    pick = rng.choice
    what = f"{pick(COUNTS)} {pick(COLOURS)} {pick(THINGS)}s to the {pick(PLACES)}"
    sentence = f"The {pick(ADJECTIVES)} {pick(JOBS)} {pick(VERBS)} {what}."
    return f'Repeat this sentence exactly: "{sentence}"', sentence


def _say(rng: random.Random) -> Example:
    sentence = f"{rng.choice(PEOPLE)} {rng.choice(VERBS)} the {rng.choice(COLOURS)} {rng.choice(THINGS)}."
    return f'Say this sentence again: "{sentence}"', sentence


def _list(rng: random.Random) -> Example:
    words = ", ".join(rng.sample(THINGS, 3))
    return f"Copy this list: {words}", words


def _fact(rng: random.Random) -> Example:
    name, city, job, thing = (rng.choice(words) for words in (PEOPLE, CITIES, JOBS, THINGS))
    text = f"{name} is a {job} from {city}. Yesterday {name} bought a {rng.choice(COLOURS)} {thing}."
    question, answer = rng.choice(((f"Where is {name} from?", city), (f"What did {name} buy?", thing)))
    return f"{text} {question}", answer


def _ask(kind: str, rng: random.Random) -> Example:
    sentence, question, names, values = ASKED[kind]
    pairs = list(zip(rng.sample(names, 2), rng.sample(values, 2), strict=True))
    name, value = rng.choice(pairs)
    text = " ".join(sentence.format(name=n, value=v) for n, v in pairs)
    return f"{text} {question.format(name=name)}", value


GENERATORS = {"copy": _copy, "say": _say, "list": _list, **{kind: partial(_ask, kind) for kind in ASKED}, "fact": _fact}
