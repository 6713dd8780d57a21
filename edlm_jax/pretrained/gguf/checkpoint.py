"""The tensors of a GGUF file under its own names, in the shapes of the Hugging Face checkpoint it was made from."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from edlm_jax.pretrained.checkpoint import Checkpoint
from edlm_jax.pretrained.gguf.config import FREQUENCIES, ROTATED, check_architecture, head_dim
from edlm_jax.pretrained.gguf.file import GgufFile, open_gguf
from edlm_jax.pretrained.layout import Place

FLOATS = ("F32", "F16", "BF16")
# Those that files for these families are made of: the _0 and _1 stand in where a row is no whole number of _K blocks.
QUANTISED = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")


class GgufCheckpoint(Checkpoint):
    """As a directory's tensors are read: what is sliced is dequantised, and nothing else."""

    dtypes = (*FLOATS, *QUANTISED)

    def __enter__(self) -> "GgufCheckpoint":
        self.file = open_gguf(self.directory)
        self._files = {name: self for name in self.file.tensors if name != FREQUENCIES}
        return self

    def rename(self, places: Iterable[Place]) -> list[Place]:
        """Our parameters' places under llama.cpp's names."""
        from gguf import MODEL_ARCH, get_tensor_name_map

        names, renamed = get_tensor_name_map(MODEL_ARCH[check_architecture(self.file).upper()], 1), []
        for place in places:
            name = names.get_name(place.template.format(layer=0), try_suffixes=(".weight", ".bias"))
            renamed.append(dataclasses.replace(place, template=name.replace("blk.0.", "blk.{layer}.")))
        return renamed

    def get_slice(self, name: str) -> "_Tensor":
        """As safetensors' files have it."""
        return _Tensor(self.file, name)


class _Tensor:
    """Rows and columns of it as float32."""

    def __init__(self, file: GgufFile, name: str):
        self._tensor = file.tensors[name]
        turned = file["general.architecture"] in ROTATED and ".".join(name.split(".")[2:3]) in ("attn_q", "attn_k")
        self._head_dim = head_dim(file) if turned else 0

    def get_shape(self) -> list[int]:
        return self._tensor.shape.tolist()[::-1]

    def get_dtype(self) -> str:
        return self._tensor.tensor_type.name

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        from gguf import dequantize

        rows, columns, H = index[0], index[1:], self._head_dim or 1
        heads = slice(rows.start // H * H, -(-rows.stop // H) * H)
        if columns:
            part = dequantize(np.array(self._tensor.data[heads]), self._tensor.tensor_type)
        else:  # a vector's bytes are not its numbers
            part = dequantize(np.array(self._tensor.data), self._tensor.tensor_type)[heads]
        if self._head_dim:  # llama.cpp rotates neighbours: pairs (i, i + H/2) lie as (2i, 2i + 1)
            halves = part.reshape(-1, self._head_dim // 2, 2, *part.shape[1:])
            part = halves.swapaxes(1, 2).reshape(part.shape)
        return part[(slice(rows.start - heads.start, rows.stop - heads.start), *columns)]
