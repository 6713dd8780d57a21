"""Our models in EleutherAI's lm-evaluation-harness, as `edlm_jax`. Needs `pip install 'edlm_jax[lm-eval]'`; no torch.

    python -m edlm_jax.evaluation.harness run --model edlm_jax --model_args pretrained=DIR,threshold=0.9 --tasks gsm8k

is the harness's own command line with the model registered; in Python, import this module before `simple_evaluate`.
Model arguments: those of `EdlmLM`. Likelihoods of a converted model are estimates of a lower bound (likelihood.py), so
a multiple-choice score has their noise; `mode=ar` takes the same weights' exact AR likelihoods.
"""

import json
import logging
import operator
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from edlm_jax.decoding import Decoder, Sampling, check_settings
from edlm_jax.decoding.modes import default_mode, make_mode
from edlm_jax.decoding.prompts import row_seeds
from edlm_jax.errors import InputError
from edlm_jax.evaluation.batches import decode_batches, decode_to_longest
from edlm_jax.evaluation.likelihood import Likelihood, log_likelihood
from edlm_jax.parallel.devices import default_dtype
from edlm_jax.pretrained import Text, load_pretrained, load_spec, load_tokenizer
from edlm_jax.pretrained.chat import render
from edlm_jax.pretrained.encode import RENDERED, begin_id, encode_bare, encode_text

_LOGGER = logging.getLogger("lm_eval.models.edlm_jax")  # heard where the harness's own are
_NEW_TOKENS = 256  # where a task does not say how many
_NOT_OURS = ("max_batch_size", "device")  # arguments


@register_model("edlm_jax")
class EdlmLM(TemplateLM):
    """A model directory that answers the harness's three kinds of request. An argument that is None has its default.

    Args:
      pretrained: Hugging Face directory or hub id, AR or converted.
      dtype: default: float32 on CPU, bfloat16 elsewhere.
      mode: as of `edlm generate`, "ar" or "psd" say (default: the model's own, `default_mode`).
      num_samples: of a diffusion likelihood's estimate (32).
      batch_size: rows decoded at a time (32); likelihoods are computed one by one.
      seed: of the sampling and of the estimates (0).
      options: of the mode, as `threshold` or `block_length`; and max_batch_size and device, which the harness passes:
        devices are jax's business.
    """

    def __init__(
        self,
        pretrained: str,
        dtype: str | None = None,
        mode: str | None = None,
        num_samples: int | None = None,
        batch_size: int | str | None = None,
        seed: int | None = None,
        **options: Any,
    ):
        super().__init__()
        counts = dict(num_samples=num_samples, batch_size=batch_size)
        for name, given in counts.items():
            if given is not None and (not str(given).isdecimal() or int(given) < 1):
                raise InputError(f"{name} must be a positive number, not {given!r}")
        self.num_samples, self.batch_size = (32 if given is None else int(given) for given in counts.values())
        self.seed, spec = seed or 0, load_spec(pretrained)
        options = _without_none(options | dict.fromkeys(_NOT_OURS))
        self.decoding = make_mode(mode or default_mode(spec).name, **options)
        self.likelihood = "ar" if self.decoding.causal else "diffusion"
        # All that can be refused is, before a weight is read.
        check_settings(spec, self.decoding, limit=1, seed=self.seed)
        self.tokenizer = load_tokenizer(pretrained)
        self.text = Text.of(spec, self.tokenizer)
        self.model = load_pretrained(pretrained, dtype=dtype or default_dtype())
        self.decoder = Decoder(self.model)
        self.contexts_cut = 0  # of all requests so far

    @property
    def eot_token_id(self) -> int | None:
        """The first end token."""
        return next(iter(self.text.ends), None)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context."""
        return begin_id(self.tokenizer)

    @property
    def tokenizer_name(self) -> str:
        """Names the cache of tokenised requests."""
        return self.tokenizer.name_or_path.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        """Tokens of a text from its beginning, or of a part of one; a rendered conversation begins as it is."""
        begins = add_special_tokens is not False and not string.startswith(RENDERED)
        return (encode_text if begins else encode_bare)(self.tokenizer, string.removeprefix(RENDERED))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as the tokenizer's template writes it, with the marks that `tok_encode` knows."""
        how = dict(add_generation_prompt=add_generation_prompt, continue_final_message=not add_generation_prompt)
        return RENDERED + render(self.tokenizer, chat_history, **how)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Completions up to the first stop string. Too long contexts lose their beginning, and are counted."""
        kwargs = [normalize_gen_kwargs(_without_none(request.args[1]), _NEW_TOKENS) for request in requests]
        contexts = [self.tok_encode(request.args[0]) or [self.prefix_token_id] for request in requests]
        prompts = self._cut(contexts, [given["max_gen_toks"] for given in kwargs])
        groups: dict[tuple[str, bool], list[int]] = defaultdict(list)
        for index, (context, given) in enumerate(request.args for request in requests):
            groups[json.dumps(given, sort_keys=True), context.startswith(RENDERED)].append(index)
        texts, new_tokens, forwards = [""] * len(requests), 0, 0
        seeds = row_seeds(self.seed, len(requests)).tolist()
        with tqdm(total=len(requests), desc="generate_until", disable=disable_tqdm) as bar:
            for (_, chat), members in groups.items():
                begun, given = bar.n, kwargs[members[0]]
                decoding = self._decoding(given)
                members = self._decodable(members, prompts, requests, decoding)
                stop = [text for text in [*given["until"], self.text.turn_stop if chat else ""] if text]
                show = lambda done, begun=begun: bar.update(begun + done - bar.n)  # noqa: E731
                how = dict(batch_size=self.batch_size, on_batch=show, stop=stop, detokenize=self.text, **decoding)
                asked, own_seeds = [prompts[i] for i in members], [seeds[i] for i in members]
                decoded = decode_batches(self.decoder, asked, seeds=own_seeds, **how)
                for i, row in zip(members, decoded, strict=True):
                    texts[i] = row.text
                    self.cache_hook.add_partial("generate_until", requests[i].args, texts[i])
                new_tokens += sum(len(row.tokens) for row in decoded)
                forwards += sum(row.denoise_forwards for row in decoded)
        _LOGGER.info("edlm_jax: %d new tokens, %.2f per forward", new_tokens, new_tokens / max(forwards, 1))
        return texts

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Nats of whole texts, each token with as much context as the model holds."""
        results = []
        for request in tqdm(requests, desc="loglikelihood_rolling", disable=disable_tqdm):
            tokens = self.tok_encode(request.args[0], add_special_tokens=False)
            tokens = tokens[1:] if tokens[:1] == [self.prefix_token_id] else tokens  # it is given already
            windows = get_rolling_token_windows(tokens, self.prefix_token_id, self.model.spec.max_length - 1, 1)
            scores = [self._score(*make_disjoint_window(window), seed=len(results)) for window in windows]
            results.append(sum(score.log_likelihood for score in scores))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, results[-1])
        return results

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **kwargs) -> list[tuple[float, bool]]:
        """(nats, whether greedy decoding gives exactly this) of each continuation."""
        requests = list(requests)
        news = [new for _, _, new in requests]
        pairs = list(zip(self._cut([context for _, context, _ in requests], map(len, news)), news, strict=True))
        shown = tqdm(pairs, desc="loglikelihood", disable=disable_tqdm)
        scores = [self._score(*pair, seed=index) for index, pair in enumerate(shown)]
        greedy = [score.greedy for score in scores] if self.likelihood == "ar" else self._is_greedy(pairs)
        results = [(score.log_likelihood, exact) for score, exact in zip(scores, greedy, strict=True)]
        for (texts, _, _), result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, result)
        return results

    def _score(self, context: list[int], new: list[int], seed: int) -> Likelihood:
        how = dict(mode=self.likelihood, num_samples=self.num_samples, seed=self.seed + seed)
        return log_likelihood(self.model, [(context, new)], **how)[0]

    def _is_greedy(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[bool]:
        """Whether greedy block decoding begins with the continuation; what cannot be decoded is not greedy."""
        refused = self.decoder.refuse([context for context, _ in pairs], self.decoding, limit=1)
        asked = [pair for i, pair in enumerate(pairs) if i not in refused]
        prompts, limits = [context for context, _ in asked], [len(new) for _, new in asked]
        how = dict(batch_size=self.batch_size, mode=self.decoding)
        rows = iter(decode_to_longest(self.decoder, prompts, limits, **how))
        return [i not in refused and next(rows).tokens[: len(new)] == list(new) for i, (_, new) in enumerate(pairs)]

    def _decodable(self, members: Sequence[int], prompts, requests: Sequence[Instance], decoding) -> list[int]:
        """The requests that can be decoded; what cannot is answered by nothing, and named."""
        names = [f"the prompt of document {requests[i].doc_id} of {requests[i].task_name}" for i in members]
        refused = self.decoder.refuse([prompts[i] for i in members], names=names, **decoding)
        for reason in refused.values():
            _LOGGER.warning("edlm_jax: answered by nothing: %s", reason)
        return [i for index, i in enumerate(members) if index not in refused]

    def _decoding(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        top_k = max(kwargs.get("top_k", 0), 0)  # -1, as others write it: all of them
        sampling = Sampling(kwargs.get("temperature", 0.0), top_k, kwargs.get("top_p", 1.0))
        return dict(mode=self.decoding, limit=kwargs["max_gen_toks"], sampling=sampling, ends=self.text.ends)

    def _cut(self, contexts: Sequence[list[int]], new_tokens: Iterable[int]) -> list[list[int]]:
        """The ends of contexts that the model's cache has room for beside so many new tokens each."""
        most, kept = self.model.spec.max_length, []
        for context, count in zip(contexts, new_tokens, strict=True):
            if count >= most:
                raise InputError(f"{count} new tokens leave no room for a prompt in {most}")
            kept.append(context[-(most - count) :])
        if cut := sum(map(operator.ne, kept, contexts)):
            what = "edlm_jax: %d of %d contexts lost their beginning: the model holds %d tokens, new ones included"
            _LOGGER.warning(what, cut, len(contexts), most)
        self.contexts_cut += cut
        return kept


def _without_none(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


def main() -> None:
    """The harness's command line; bad input is one line and exit code 2, as everywhere."""
    try:
        cli_evaluate()
    except InputError as error:
        print(f"edlm_jax: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
