"""The tokenizer in a GGUF file as a Hugging Face directory has it.

A file names the way in which its texts are cut (tokenizer.ggml.pre) and does not spell it: the ways of the families'
own releases stand here, as their tokenizer.json files have them.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from edlm_jax.errors import InputError
from edlm_jax.pretrained.gguf.file import GgufFile

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # tokenizer.ggml.token_type

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Way:
    """How a byte-level tokenizer cuts texts into words before its merges join their bytes."""

    cut: str = ""  # at what this finds
    gpt2: bool = False  # then as GPT-2 does
    composed: bool = False  # after Unicode's composition (NFC)
    whole: bool = False  # a word that is a token is that, whatever the merges make of it
    begins: bool = False  # texts begin with BOS where the file does not say


WAYS = {  # by tokenizer.ggml.pre
    "gpt-2": Way(gpt2=True),
    "smollm": Way(r"\p{N}", gpt2=True),
    "qwen2": Way(_WORDS + r"\p{N}" + _REST, composed=True),
    "llama-bpe": Way(_WORDS + r"\p{N}{1,3}" + _REST, whole=True, begins=True),
    "tekken": Way(_TEKKEN, whole=True, begins=True),
}
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # transformers' names, llama.cpp's


def write_tokenizer(file: GgufFile, directory: Path) -> None:
    """tokenizer.json, tokenizer_config.json and, where there is one, chat_template.jinja."""
    kind = file["tokenizer.ggml.model"]
    if kind not in _BUILDERS:
        raise InputError(f"{file.path}: tokenizer {kind!r} is not supported; supported are {', '.join(_BUILDERS)}")
    tokens, types = file["tokenizer.ggml.tokens"], file.metadata.get("tokenizer.ggml.token_type")
    types = types or [_NORMAL] * len(tokens)
    vocabulary = {token: i for i, (token, its) in enumerate(zip(tokens, types, strict=True)) if its != _UNUSED}
    if len(vocabulary) < len(tokens) - types.count(_UNUSED):
        raise InputError(f"{file.path}: tokenizer.ggml.tokens has a token twice")
    tokenizer, begins = _BUILDERS[kind](file, vocabulary, types)
    whole = {i: its for i, its in enumerate(types) if its in (_UNKNOWN, _CONTROL, _USER_DEFINED)}  # no text cuts these
    tokenizer.add_tokens(
        [AddedToken(tokens[i], normalized=False, special=its != _USER_DEFINED) for i, its in whole.items()]
    )
    special = {f"{name}_token": _token(file, f"tokenizer.ggml.{key}_token_id") for name, key in _SPECIAL.items()}
    special = {name: token for name, token in special.items() if token is not None}
    _add_begin_and_end(file, tokenizer, special, begins)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **special}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    if template := file.metadata.get("tokenizer.chat_template"):
        (directory / "chat_template.jinja").write_text(template, encoding="utf-8")


def _byte_level(file: GgufFile, vocabulary: dict[str, int], types: list[int]) -> tuple[Tokenizer, bool]:
    name = file.metadata.get("tokenizer.ggml.pre")
    if name not in WAYS:
        raise InputError(f"{file.path}: tokenizer.ggml.pre {name!r} is not supported; supported are {', '.join(WAYS)}")
    way = WAYS[name]
    merges = [tuple(merge.split(" ")) for merge in file["tokenizer.ggml.merges"]]
    return byte_level(models.BPE(vocabulary, merges, ignore_merges=way.whole), way), way.begins


def byte_level(model: models.BPE, way: Way) -> Tokenizer:
    """A tokenizer that cuts texts in this way and joins their bytes as the model says."""
    tokenizer = Tokenizer(model)
    if way.composed:
        tokenizer.normalizer = normalizers.NFC()
    cuts = [pre_tokenizers.Split(Regex(way.cut), behavior="isolated")] if way.cut else []
    cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=way.gpt2))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(file: GgufFile, vocabulary: dict[str, int], types: list[int]) -> tuple[Tokenizer, bool]:
    """SentencePiece's BPE: the pair that makes the best token is joined first, which ordered merges do alike."""
    scores = {token: file["tokenizer.ggml.scores"][i] for token, i in vocabulary.items() if types[i] == _NORMAL}
    unknown = _token(file, "tokenizer.ggml.unknown_token_id")
    tokenizer = Tokenizer(
        models.BPE(vocabulary, _merges(vocabulary, scores), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    space = file.metadata.get("tokenizer.ggml.add_space_prefix", True)
    steps = ([normalizers.Prepend("▁")] if space else []) + [normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    undo = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(undo + ([decoders.Strip(" ", 1, 0)] if space else []))
    return tokenizer, True


def _merges(vocabulary: dict[str, int], scores: dict[str, float]) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a token of text, the best one first."""
    found = []
    for token, score in scores.items():
        halves = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        found += [(-score, left, right) for left, right in halves if left in vocabulary and right in vocabulary]
    return [(left, right) for _, left, right in sorted(found)]


_BUILDERS = {"gpt2": _byte_level, "llama": _sentence_piece}


def _add_begin_and_end(file: GgufFile, tokenizer: Tokenizer, special: dict[str, str], begins: bool) -> None:
    add = lambda name, unsaid: file.metadata.get(f"tokenizer.ggml.add_{name}", unsaid) and name in special  # noqa: E731
    first = [special["bos_token"]] if add("bos_token", begins) else []
    last = [special["eos_token"]] if add("eos_token", False) else []
    if first or last:
        ids = [(token, tokenizer.token_to_id(token)) for token in first + last]
        single, pair = [*first, "$A", *last], [*first, "$A", *first, "$B:1", *last]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)


def _token(file: GgufFile, key: str) -> Any:
    token_id, tokens = file.metadata.get(key), file["tokenizer.ggml.tokens"]
    if token_id is not None and token_id >= len(tokens):
        raise InputError(f"{file.path}: {key} = {token_id} is outside the vocabulary of {len(tokens)} tokens")
    return None if token_id is None else tokens[token_id]
