import numpy as np
import pytest
from tokenizers import processors

from edlm_jax.data.documents import tokenize
from edlm_jax.errors import InputError
from tests.data.conftest import CHAT_TEMPLATE, END, make_tokenizer

CHAT = [
    dict(role="system", content="Be brief."),
    dict(role="user", content="Zwei plus drei?"),
    dict(role="assistant", content="Fünf 5"),
    dict(role="user", content="And one more?"),
    dict(role="assistant", content="6"),
]


def split_by_loss(tokens, tokenizer):
    """The text of each run of one loss value."""
    tokens_L, loss_mask_L = tokens
    cuts = np.flatnonzero(np.diff(loss_mask_L)) + 1
    runs = zip(np.split(loss_mask_L, cuts), np.split(tokens_L, cuts), strict=True)
    return [(int(run_mask[0]), tokenizer.decode(run)) for run_mask, run in runs]


def test_text_carries_loss_everywhere_and_ends(tokenizer):
    ((tokens_L, loss_mask_L),) = tokenize(dict(text="abç"), tokenizer)
    assert tokens_L.dtype == loss_mask_L.dtype == np.int32
    assert tokens_L.tolist() == tokenizer.encode("abç") + [tokenizer.eos_token_id]
    assert loss_mask_L.tolist() == [1] * 5


def test_prompt_carries_no_loss(tokenizer):
    parts = split_by_loss(*tokenize(dict(prompt="2+3 ->", response=" 5"), tokenizer), tokenizer)
    assert parts == [(0, "2+3 ->"), (1, " 5<|im_end|>")]


def test_empty_prompt_is_text(tokenizer):
    ((tokens_L, loss_mask_L),) = tokenize(dict(prompt="", response="xy"), tokenizer)
    assert loss_mask_L.tolist() == [1, 1, 1] and len(tokens_L) == 3


def test_an_end_that_the_tokenizer_adds_itself_stays_single():
    closing = make_tokenizer(eos_token=END)
    end = closing.eos_token_id
    closing.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"<|im_start|> $A {END}", special_tokens=[("<|im_start|>", end - 1), (END, end)]
    )
    ((tokens_L, _),) = tokenize(dict(text="ab"), closing)
    assert tokens_L.tolist()[0] == end - 1 and tokens_L.tolist().count(end) == 1 and tokens_L[-1] == end
    ((tokens_L, loss_mask_L),) = tokenize(dict(prompt="ab", response="c"), closing)
    assert tokens_L.tolist().count(end) == 1 and loss_mask_L.tolist() == [0, 0, 0, 1, 1]


def test_only_what_the_assistant_says_carries_loss(tokenizer):
    parts = split_by_loss(*tokenize(dict(messages=CHAT), tokenizer), tokenizer)
    assert parts == [
        (
            0,
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nZwei plus drei?<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        (1, "Fünf 5<|im_end|>"),
        (0, "\n<|im_start|>user\nAnd one more?<|im_end|>\n<|im_start|>assistant\n"),
        (1, "6<|im_end|>"),
    ]


def test_what_follows_the_last_answer_is_dropped(tokenizer):
    shorter = tokenize(dict(messages=CHAT[:3]), tokenizer)
    longer = tokenize(dict(messages=CHAT[:4]), tokenizer)
    np.testing.assert_array_equal(shorter, longer)


def test_an_answer_without_an_end_gets_one():
    other = make_tokenizer(eos_token="<|mask|>")
    other.chat_template = CHAT_TEMPLATE
    parts = split_by_loss(*tokenize(dict(messages=CHAT[:3]), other), other)
    assert parts[-1] == (1, "Fünf 5<|im_end|>\n<|mask|>")


def test_a_template_that_rewrites_earlier_turns_gives_a_document_a_turn():
    tokenizer = make_tokenizer(eos_token="<|im_end|>")
    # Like the templates of reasoning models: an earlier answer is shown without its thought.
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}:{% if m['role'] == 'assistant' and loop.last %}<think>{% endif %}"
        "{{ m['content'] }}<|im_end|>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    first, second = (split_by_loss(tokens, tokenizer) for tokens in tokenize(dict(messages=CHAT), tokenizer))
    asked = "system:Be brief.<|im_end|>user:Zwei plus drei?<|im_end|>assistant:"
    assert first == [(0, asked), (1, "<think>Fünf 5<|im_end|>")]
    assert second == [(0, f"{asked}Fünf 5<|im_end|>user:And one more?<|im_end|>assistant:"), (1, "<think>6<|im_end|>")]


def test_an_answer_that_quotes_the_end_is_learned_whole(tokenizer):
    said = "With <|im_end|> and a newline."
    messages = [dict(role="user", content="How?"), dict(role="assistant", content=said)]
    (tokens,) = tokenize(dict(messages=messages), tokenizer)
    assert split_by_loss(tokens, tokenizer)[1] == (1, f"{said}<|im_end|>")
    tokens_L, loss_mask_L = tokens
    assert (tokens_L[loss_mask_L > 0] == tokenizer.eos_token_id).sum() == 1


def test_text_begins_and_ends_once_however_it_is_written():
    closing = make_tokenizer(eos_token=END, bos_token="<|im_start|>")
    start, end = closing.bos_token_id, closing.eos_token_id
    closing.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
    )
    for text in ("ab", "<|im_start|>ab", "ab<|im_end|>"):
        ((tokens_L, _),) = tokenize(dict(text=text), closing)
        assert tokens_L.tolist() == [start, *closing.encode("ab", add_special_tokens=False), end]
    ((tokens_L, _),) = tokenize(dict(prompt="<|im_start|>a", response="b<|im_end|>"), closing)
    assert tokens_L.tolist() == [start, *closing.encode("ab", add_special_tokens=False), end]


@pytest.mark.parametrize("document", [dict(text=""), dict(text=" \n"), dict(text=END), dict(prompt="", response="")])
def test_a_document_without_text_gives_nothing(document, tokenizer):
    assert tokenize(document, tokenizer) == []
    assert len(tokenize(dict(prompt="x", response=""), tokenizer)) == 1  # to say nothing is an answer


@pytest.mark.parametrize(
    "document, reason",
    [
        (dict(messages=CHAT[:2]), "nothing to learn"),
        (dict(tokens=[1, 2, 259]), "token 259 is outside the tokenizer's vocabulary, whose ids end at 258"),
        (dict(tokens=[1, 2], loss_mask=[0, 2]), "holds 0 .given. and 1 .learned. only"),
        (dict(tokens=[1, -2]), "token -2 is outside"),
        (dict(tokens=[1, 2], loss_mask=[1]), "loss mask"),
    ],
)
def test_documents_refused(document, reason, tokenizer):
    assert len(tokenizer) == 259
    with pytest.raises(InputError, match=reason) as caught:
        tokenize(document, tokenizer)
    assert "\n" not in str(caught.value)


def test_pretokenised_is_taken_as_it_is(tokenizer):
    ((tokens_L, loss_mask_L),) = tokenize(dict(tokens=[5, 6, 258], loss_mask=[0, 1, 1]), tokenizer)
    assert tokens_L.tolist() == [5, 6, 258] and loss_mask_L.tolist() == [0, 1, 1]
    assert tokenize(dict(tokens=[5, 6]), tokenizer)[0][1].tolist() == [1, 1]
