"""Answers by a JSON schema: whatever the model would say, what is said is JSON of that schema."""

import json

import jsonschema
import pytest

from edlm_jax.decoding import Engine, parse_mode
from edlm_jax.errors import InputError
from edlm_jax.serving.grammar import guide_maker
from edlm_jax.serving.requests import ApiError, read_ask
from tests.seeds import fresh_rng
from tests.serving.served import ENDS, NAME, make_decoder, make_text

SCHEMA = {
    "type": "object",
    "properties": {
        "size": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["a", "b"]},
    },
    "required": ["size", "kind"],
    "additionalProperties": False,
}
USER = {"role": "user", "content": "a"}


@pytest.mark.filterwarnings("ignore:.*reads next tokens")
def test_a_random_model_says_json():
    """Greedy and drawn, beside rows that say what they like; the text is whole where the row ended by itself."""
    rng, text = fresh_rng(), make_text()
    engine, said, whole = Engine(make_decoder(), parse_mode("ar"), slots=3, columns=256), {}, 0
    for _ in range(2):
        asked = {}
        for schema in (SCHEMA, None, {"type": "object"}):
            wanted = {"type": "json_object"} if schema != SCHEMA else {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": SCHEMA, "strict": True},
            }
            body = dict(messages=[USER], temperature=float(rng.choice([0, 1])), max_tokens=220)
            body |= {"response_format": wanted} if schema else {}
            row = read_ask(body, True, engine, text, NAME, 1)
            slot = engine.insert(row.prompts[0], row.settings[0])
            asked[slot], said[slot] = schema, []
        while engine.live:
            for event in engine.step():
                said[event.slot] += event.tokens
                if event.finished == "end" and asked[event.slot]:
                    answer = json.loads(text.tokenizer.decode([token for token in said[event.slot][:-1]]))
                    jsonschema.validate(answer, asked[event.slot])
                    whole += 1
    assert whole >= 2, "SCHEMA's texts have at most 200 characters: they end"


def test_a_guide_follows_its_row():
    """Only what goes on may come; behind a whole text only the ends may; a wrong token ends the row and is told."""
    text, rng = make_text(), fresh_rng()
    make = guide_maker(text, 259, {"enum": ["ab", "ac"]})
    guide, letters = make(), text.tokenizer.encode('"ac"')
    for at, token in enumerate(letters):
        allowed = _ids(guide(letters[:at]))
        assert token in allowed and not allowed & set(ENDS)
    assert _ids(guide(letters)) == set(ENDS) and guide.error is None
    other = make()
    assert _ids(other([int(rng.integers(250, 256))])) == set(ENDS) and "followed" in other.error


def test_schemas_that_cannot_be_followed_are_the_clients_error(monkeypatch):
    for schema, reason in [
        ({"type": "objct"}, "objct"),
        ({"const": float("inf")}, "cannot be followed"),
        ({"$ref": "#"}, "cannot be followed further: [A-Za-z]+$"),
    ]:
        with pytest.raises(InputError, match=reason):
            guide_maker(make_text(), 259, schema)
    engine = Engine(make_decoder(), parse_mode("ar"), slots=1, columns=64)
    wanted = {"type": "json_schema", "json_schema": {"schema": {"type": "objct"}}}
    with pytest.raises(ApiError, match="objct") as refused:
        read_ask(dict(messages=[USER], response_format=wanted), True, engine, make_text(), NAME, 1)
    assert refused.value.status == 400 and refused.value.body["error"]["param"] == "response_format"


def _ids(allowed_W) -> set[int]:
    return {token for token in range(32 * len(allowed_W)) if allowed_W[token // 32] >> (token % 32) & 1}
