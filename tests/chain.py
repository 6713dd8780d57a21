"""Models that say after each token one that is known, whatever came before, and tokenizers to make them with."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax import nnx
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from edlm_jax import save_pretrained
from edlm_jax.models import ModelSpec, Transformer
from tests.conftest import TINY


def save_chain(tokenizer_dir: Path, following: Mapping[int, int], directory: Path) -> Path:
    """A model directory with this tokenizer; behind tokens that are not in `following` it says anything."""
    config = TINY | json.loads((tokenizer_dir / "config.json").read_text()) | {"tie_word_embeddings": False}
    model = Transformer(ModelSpec.from_hf(config, source=str(tokenizer_dir)), rngs=nnx.Rngs(0))
    for name in ("o_NHD", "down_FD"):  # no layer adds anything to the embedding
        param = getattr(model.layers, name)
        param[...] = 0 * param[...]
    embedding_VD = np.random.default_rng(0).normal(size=model.embedding_VD[...].shape)
    head_DV = np.zeros(embedding_VD.shape[::-1])
    for token, after in following.items():
        head_DV[:, after] += embedding_VD[token]
    model.embedding_VD[...], model.head_DV[...] = embedding_VD.astype(np.float32), head_DV.astype(np.float32)
    save_pretrained(model, directory)
    return directory


def steps(*tokens: int) -> dict[int, int]:
    """token -> the next one."""
    return dict(zip(tokens, tokens[1:], strict=False))


def save_tokenizer(tokenizer: Tokenizer, directory: Path, *, config: Mapping = {}, **settings) -> Path:  # noqa: B006
    """A directory with a tokenizer and what config.json says beside the model's shape."""
    directory.mkdir(exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "config.json").write_text(json.dumps(dict(config)))
    return directory


def byte_tokenizer(*special: str) -> Tokenizer:
    """Tokens 0 to 255 are the bytes, in the order of their letters; special tokens follow."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def word_tokenizer() -> Tokenizer:
    """Words with a leading space, as Llama 2 has them: "</s>" is token 0, "<unk>" 1, "w0" 2, "w1" 3 ..."""
    words = ["</s>", "<unk>", *(f"▁w{i}" for i in range(99)), *(f"▁{i}" for i in range(99))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


def copy_with(directory: Path, copy: Path, **files: Mapping) -> Path:
    """A copy of a model directory in which some JSON files (by their stem) have other entries."""
    shutil.copytree(directory, copy)
    for name, entries in files.items():
        path = copy / f"{name}.json"
        found = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(found | dict(entries)))
    return copy
