"""What a type checker knows of the public names: read by mypy (`make lint`), never run."""

from typing import assert_type

import edlm_jax
from edlm_jax.attention import BlockCausal, Causal, Pattern
from edlm_jax.decoding import Decoder, Generation, Mode, Sampling, parse_mode
from edlm_jax.models import Conversion, ModelSpec, Transformer
from edlm_jax.parallel.mesh import decoding_mesh

model = edlm_jax.load_pretrained("DIR", dtype="float32", mesh=decoding_mesh(tensor=2))
assert_type(model, Transformer)
assert_type(model.spec, ModelSpec)
assert_type(model.spec.conversion, Conversion | None)

patterns: list[Pattern] = [Causal(), BlockCausal(4)]
result = edlm_jax.generate(model, [[1, 2, 3]], max_new_tokens=32, threshold=0.9, on_block=lambda rows: None)
assert_type(result, Generation)
assert_type(result.tokens, list[list[int]])
assert_type(result.tokens_per_forward, float)

mode = parse_mode("psd:depth=2")
assert_type(mode, Mode)
Decoder(model, take=True)([[1]], mode, limit=3, sampling=Sampling(temperature=0.7), seed=[1])
edlm_jax.save_pretrained(model, "OUT")

# What the checker must refuse; `warn_unused_ignores` says so where it does not.
edlm_jax.generate(model, "text", max_new_tokens=3)  # type: ignore[arg-type]
edlm_jax.generate(model, [[1]], max_new_tokens=3, treshold=0.9)  # type: ignore[call-arg]
edlm_jax.load_pretrained(3)  # type: ignore[arg-type]
