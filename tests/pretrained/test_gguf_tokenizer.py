"""The tokenizer in a GGUF file is the one that it was made from: cuts, merges, special tokens, template, ends."""

import json
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

pytest.importorskip("gguf")

from edlm_jax import InputError, load_pretrained, save_pretrained  # noqa: E402
from edlm_jax.models.spec import ModelSpec  # noqa: E402
from edlm_jax.pretrained import Text, load_spec, load_tokenizer  # noqa: E402
from edlm_jax.pretrained.encode import encode_text  # noqa: E402
from edlm_jax.pretrained.layout import places  # noqa: E402
from tests.conftest import TINY  # noqa: E402
from tests.pretrained.gguf_files import write_gguf  # noqa: E402
from tests.seeds import fresh_rng  # noqa: E402

CORPUS = [path.read_text() for path in sorted(Path(__file__).parents[2].glob("docs/*.md"))]
LETTERS = "ab Z 09  .,\n\t'sé日½#_!/\r"
TEXTS = [
    "",
    " ",
    "a  b\n\n x",
    "It's 12 345,6 of WE'LL and we'll\r\n\r\n  7",
    "x =  1\n\t\tif a != b:  # 3/4",
    "nai\u0308ve cafe\u0301 日本語 🙂👩‍👩‍👧 Ⅷ ½ ²",
    "<|im_start|>user\nhi<|im_end|>\n<tool> <|im_start|>",
    "\u00a0\u200b x" + "A" * 50,
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_pad|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
WORDS, REST = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|", r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
# As the families' own tokenizer.json files cut: (name in the file, regular expressions in turn, ...)
WAYS = {
    "gpt-2": ([GPT2], None, False),
    "smollm": ([r"\p{N}", GPT2], None, False),
    "qwen2": ([WORDS + r"\p{N}" + REST + r"\s+(?!\S)|\s+"], normalizers.NFC(), False),
    "llama-bpe": ([WORDS + r"\p{N}{1,3}" + REST + r"\s+(?!\S)|\s+"], None, True),
}


def texts(count: int = 200) -> list[str]:
    rng = fresh_rng()
    return TEXTS + ["".join(rng.choice(list(LETTERS), rng.integers(40))) for _ in range(count)]


def byte_level(name: str) -> Tokenizer:
    """A small one, trained on the docs."""
    cuts, normalizer, whole = WAYS[name]
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole))
    splits = [pre_tokenizers.Split(Regex(cut), behavior="isolated") for cut in cuts]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    how = dict(special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    trainer = trainers.BpeTrainer(vocab_size=600, **how)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(["<tool>"])
    return tokenizer


def metadata_of(tokenizer: Tokenizer, name: str) -> dict:
    model, vocabulary = json.loads(tokenizer.to_str())["model"], tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.get) + ["[PAD0]", "[PAD1]"]
    kinds = {"<tool>": 4, "[PAD0]": 5, "[PAD1]": 5} | dict.fromkeys(SPECIAL, 3)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [kinds.get(token, 1) for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.eos_token_id": vocabulary["<|im_end|>"],
        "tokenizer.ggml.eot_token_id": vocabulary["<|endoftext|>"],
        "tokenizer.ggml.bos_token_id": vocabulary["<|im_start|>"],
        "tokenizer.chat_template": TEMPLATE,
    }


def write(directory: Path, metadata: dict) -> Path:
    spec, rng = ModelSpec.from_hf(TINY | {"vocab_size": len(metadata["tokenizer.ggml.tokens"])}), fresh_rng()
    shapes = {name: place.hf_shape for place in places(spec) for name in place.hf_names}
    tensors = {name: rng.standard_normal(shape, "float32") for name, shape in shapes.items()}
    return write_gguf(directory / "model.gguf", spec, tensors, metadata=metadata)


@pytest.mark.parametrize("name", WAYS)
def test_texts_become_the_same_tokens(name, tmp_path):
    original = byte_level(name)
    found = load_tokenizer(write(tmp_path, metadata_of(original, name) | {"tokenizer.ggml.add_bos_token": False}))
    for text in texts():
        ids = original.encode(text, add_special_tokens=False).ids
        assert encode_text(found, text) == ids, text
        assert found.decode(ids) == original.decode(ids, skip_special_tokens=False)
    assert len(found) == original.get_vocab_size() and "[PAD0]" not in found.get_vocab()


def test_special_tokens_template_and_ends_are_the_files(tmp_path):
    metadata = metadata_of(byte_level("qwen2"), "qwen2")
    path = write(tmp_path, metadata)
    tokenizer, spec = load_tokenizer(path), load_spec(path)
    assert (tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_start|>", None)
    text = tokenizer.apply_chat_template([dict(role="user", content="hi")], tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert set(Text.of(spec, tokenizer).ends) == {tokenizer.eos_token_id, metadata["tokenizer.ggml.eot_token_id"]}
    assert {token.content for token in tokenizer.added_tokens_decoder.values() if token.special} == set(SPECIAL)


@pytest.mark.parametrize(("told", "begins"), [({}, True), ({"tokenizer.ggml.add_bos_token": False}, False)])
def test_llama_3_begins_texts_unless_the_file_says_not_to(tmp_path, told, begins):
    tokenizer = load_tokenizer(write(tmp_path, metadata_of(byte_level("llama-bpe"), "llama-bpe") | told))
    assert (encode_text(tokenizer, "hello")[0] == tokenizer.bos_token_id) == begins


def test_an_export_has_the_tokenizer(tmp_path):
    path = write(tmp_path, metadata_of(byte_level("smollm"), "smollm"))
    save_pretrained(load_pretrained(path, "float32"), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.gguf"))
    found, exported = load_tokenizer(path), load_tokenizer(tmp_path / "out")
    assert exported.chat_template == TEMPLATE and exported.eos_token == "<|im_end|>"
    assert all(encode_text(found, text) == encode_text(exported, text) for text in texts(20))


PIECES = ["▁", *"abcdehlortw", "▁h", "▁w", "he", "el", "ll", "lo", "or", "ld", "▁he", "ell", "llo", "▁hello", "wor"]
PIECES += ["▁wor", "▁world", "orld", "lor", "ab", "ba", "aba", "▁▁"]


def sentence_piece(pieces: list[str], scores: dict[str, float], text: str) -> list[str]:
    """llama.cpp's way in plain Python: join the two neighbours that make the best piece, the leftmost among equals."""
    parts = list("▁" + text.replace(" ", "▁"))
    while True:
        pairs = [a + b for a, b in zip(parts, parts[1:], strict=False)]
        joined = [(scores[pair], -i) for i, pair in enumerate(pairs) if pair in scores]
        if not joined:
            break
        at = -max(joined)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    known = set(pieces)
    return [p for part in parts for p in ([part] if part in known else [f"<0x{b:02X}>" for b in part.encode()])]


def test_sentence_piece_joins_the_best_pair_first(tmp_path):
    rng = fresh_rng()
    order = [str(piece) for piece in rng.permutation([piece for piece in PIECES if len(piece) > 1])]
    scores = {piece: -float(rank) for rank, piece in enumerate(order)}
    letters = {piece: -1000.0 - rank for rank, piece in enumerate(piece for piece in PIECES if len(piece) == 1)}
    head, bytes_ = ["<unk>", "<s>", "</s>"], [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = [*head, *bytes_, *PIECES]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [(scores | letters).get(token, 0.0) for token in tokens],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(PIECES)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    tokenizer = load_tokenizer(write(tmp_path, metadata))
    drawn = ["".join(rng.choice(list("abhelord w"), 12)) for _ in range(200)]
    written = ["hello world", "hello  worldabab", "é hell", *drawn]
    for text in written:
        ids = encode_text(tokenizer, text)
        assert ids[0] == 1
        assert tokenizer.convert_ids_to_tokens(ids[1:]) == sentence_piece(PIECES, scores, text), text
        assert tokenizer.decode(ids[1:]) == text


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tokenizer.ggml.pre": "viking"}, "tokenizer.ggml.pre 'viking' is not supported; supported are gpt-2, smollm"),
        ({"tokenizer.ggml.pre": None}, "tokenizer.ggml.pre None is not supported"),
        ({"tokenizer.ggml.merges": None}, "has no tokenizer.ggml.merges"),
        ({"tokenizer.ggml.eos_token_id": 5000}, "eos_token_id = 5000 is outside the vocabulary"),
        ({"tokenizer.ggml.token_type": [1, 1, 1]}, "its metadata do not describe .* zip.. argument 2 is sho"),
        ({"tokenizer.ggml.merges": ["qq zz"]}, "its metadata do not describe .*: Token `qq` out of vocabulary"),
    ],
)
def test_what_is_not_known_is_named(tmp_path, change, named):
    path = write(tmp_path, metadata_of(byte_level("gpt-2"), "gpt-2") | change)
    with pytest.raises(InputError, match=named):
        load_tokenizer(path)


def test_a_token_that_is_there_twice_is_refused(tmp_path):
    metadata = metadata_of(byte_level("gpt-2"), "gpt-2")
    metadata["tokenizer.ggml.tokens"][300] = metadata["tokenizer.ggml.tokens"][301]
    with pytest.raises(InputError, match="has a token twice"):
        load_tokenizer(write(tmp_path, metadata))


def test_a_file_without_a_tokenizer_says_so(tmp_path):
    metadata = metadata_of(byte_level("gpt-2"), "gpt-2")
    path = write(tmp_path, metadata | {"tokenizer.ggml.model": None})
    with pytest.raises(InputError, match="model.gguf has no tokenizer"):
        load_tokenizer(path)
