"""What Prometheus is told: counts and times, never content."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from qwen_agent.llm.shared import Served, SharedRuntime

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)


class Metrics:
    """Counters and histograms of one server, in a registry of its own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._generations = Counter(
            "qwen_agent_generations", "Generations by how they ended.", ["outcome"], registry=registry
        )
        self._tokens = Counter(
            "qwen_agent_tokens", "Tokens read, found in a KV cache, written.", ["kind"], registry=registry
        )
        self._queued = _histogram("queue_seconds", "Seconds that a generation waited for a place.", registry)
        self._first = _histogram("first_token_seconds", "Seconds from arrival to the first token.", registry)
        self._total = _histogram("generation_seconds", "Seconds from arrival to the end.", registry)
        self._written = _histogram("generation_tokens", "Tokens that a generation wrote.", registry, _TOKENS)
        self._responses = Counter(
            "qwen_agent_http_responses", "HTTP responses.", ["route", "status"], registry=registry
        )
        self._latency = Histogram(
            "qwen_agent_http_seconds", "Seconds of HTTP requests.", ["route"], buckets=_SECONDS, registry=registry
        )
        self._active = Gauge("qwen_agent_active", "Generations that have a place.", registry=registry)
        self._waiting = Gauge("qwen_agent_waiting", "Generations that wait for one.", registry=registry)

    def watch(self, runtime: SharedRuntime) -> None:
        """Tell how many generations this runtime has."""
        self._active.set_function(lambda: runtime.active)
        self._waiting.set_function(lambda: runtime.waiting)

    def served(self, served: Served) -> None:
        """Count a generation (SharedRuntime's ``observe``)."""
        self._generations.labels(served.outcome).inc()
        if served.outcome == "refused":
            return
        usage = served.usage
        self._tokens.labels("read").inc(usage.prefilled_tokens)
        self._tokens.labels("cached").inc(usage.cached_tokens)
        self._tokens.labels("written").inc(usage.generated_tokens)
        self._total.observe(served.total)
        self._written.observe(usage.generated_tokens)
        if served.queued is not None:
            self._queued.observe(served.queued)
        if served.first_token is not None:
            self._first.observe(served.first_token)

    def responded(self, route: str, status: int, seconds: float) -> None:
        """Count an HTTP request, by the route's template: a path can be anything."""
        self._responses.labels(route, str(status)).inc()
        self._latency.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Everything, in Prometheus' format."""
        return generate_latest(self._registry)


def _histogram(name: str, about: str, registry: CollectorRegistry, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
    return Histogram(f"qwen_agent_{name}", about, buckets=buckets, registry=registry)
