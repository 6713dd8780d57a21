"""Our models in MTEB, the embedding benchmark. Needs `pip install 'edlm_jax[mteb]'`, which brings torch.

    import mteb
    from edlm_jax.evaluation.mteb import Encoder
    mteb.evaluate(Encoder("runs/quickstart/model", attention="bidirectional"), mteb.get_tasks(["STSBenchmark"]))

Hidden states are averaged over tokens, without instructions or tuning, as in arXiv 2512.14067. Tested with
tasks of our own in mteb 2.26; on none of MTEB's yet.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from edlm_jax.errors import InputError
from edlm_jax.evaluation.embedding import attentions, embed, normalise
from edlm_jax.parallel.devices import default_dtype
from edlm_jax.pretrained import load_pretrained, load_spec, load_tokenizer
from edlm_jax.pretrained.encode import begin_id, encode_text


class Encoder:
    """What MTEB calls an encoder (its `EncoderProtocol`).

    Args:
      model_name: Hugging Face directory or hub id, AR or converted.
      attention: "causal", "block_causal" or "bidirectional".
    """

    def __init__(self, model_name: str, revision: str | None = None, *, attention: str = "bidirectional", **settings):
        self.name, self.revision = str(model_name), revision
        ways = attentions(load_spec(model_name))
        if attention not in ways:
            raise InputError(f"attention {attention!r} is unknown; choose one of {', '.join(ways)}")
        self._pattern, self._tokenizer = ways[attention], load_tokenizer(model_name)
        self._model = load_pretrained(model_name, dtype=settings.get("dtype") or default_dtype())

    def encode(self, inputs: Iterable[str | Mapping[str, Any]], *, batch_size: int = 32, **_) -> np.ndarray:
        """float32[texts, D] of texts, or of a data loader's batches, which have theirs under "text"."""
        texts = [text for batch in inputs for text in ([batch] if isinstance(batch, str) else batch["text"])]
        rows = [encode_text(self._tokenizer, text) or [begin_id(self._tokenizer)] for text in texts]  # empty ones, too
        return embed(self._model, rows, pattern=self._pattern, batch_size=batch_size)

    def similarity(self, embeddings1, embeddings2):
        """Cosines of all pairs, as a torch tensor."""
        return _normalised(embeddings1) @ _normalised(embeddings2).T

    def similarity_pairwise(self, embeddings1, embeddings2):
        """Cosines of one by one, as a torch tensor."""
        return (_normalised(embeddings1) * _normalised(embeddings2)).sum(axis=-1)

    @property
    def mteb_model_meta(self):
        """A name for the results."""
        from mteb.models import ModelMeta

        return ModelMeta.create_empty({"name": f"edlm_jax/{self.name.strip('/').replace('/', '_')}"})


def _normalised(embeddings):
    """As float32 of torch, of rows of length one."""
    import torch

    return torch.from_numpy(normalise(np.atleast_2d(np.asarray(embeddings, np.float32))))
