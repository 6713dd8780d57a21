"""What a server counts, in Prometheus' form. Tokens over denoising forwards is tokens per forward."""

import jax
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self):
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        of = dict(registry=registry)
        self.requests = Counter("edlm_requests", "HTTP requests answered", ("path", "status"), **of)
        self.rows = Counter("edlm_rows", "Rows that ended: stop, length, cancelled or failed", ("end",), **of)
        self.prompt_tokens = Counter("edlm_prompt_tokens", "Tokens of prompts that were put into slots", **of)
        self.tokens = Counter("edlm_tokens", "Tokens that rows generated", **of)
        self.forwards = Counter("edlm_forwards", "Forwards of rows: denoise or commit", ("kind",), **of)
        self.steps = Counter("edlm_steps", "Steps of the engine", **of)
        self.compilations = Counter("edlm_compilations", "Programs compiled, by the warm-up too", **of)
        jax.monitoring.register_event_duration_secs_listener(
            lambda name, *_, **__: self.compilations.inc() if name.endswith("/backend_compile_duration") else None
        )
        self.live = Gauge("edlm_rows_live", "Rows in slots", **of)
        self.waiting = Gauge("edlm_rows_waiting", "Rows that wait for a slot", **of)
        self.slots = Gauge("edlm_slots", "Slots of the engine", **of)
        self.cache = Gauge("edlm_cache_columns", "Columns of the rows' caches, where these lie in pages", **of)
        self.cache_used = Gauge("edlm_cache_columns_used", "Of them, those of rows", **of)
        self.shared = Gauge("edlm_prompt_columns_shared", "Of prompts, so far, that earlier ones had left", **of)
        how = dict(buckets=_SECONDS, registry=registry)
        self.first = Histogram("edlm_first_token_seconds", "From a row's arrival to its first tokens", **how)
        self.whole = Histogram("edlm_row_seconds", "From a row's arrival to its end", **how)

    def totals(self) -> dict[str, int]:
        """Of all requests, rows and tokens so far."""
        samples = [sample for family in self.registry.collect() for sample in family.samples]
        total = lambda name: int(sum(s.value for s in samples if s.name == f"edlm_{name}_total"))  # noqa: E731
        return {name: total(name) for name in ("requests", "rows", "tokens")}
