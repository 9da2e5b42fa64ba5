# SPDX-License-Identifier: Apache-2.0
"""What Prometheus reads: requests by result, times, who was missing and why, breakers, and the line."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from edvit_hf.runtime import Answer, EDViTRuntime
from edvit_hf.serving.throttle import Line

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """A registry of this server's own, so that several in one process do not add up."""

    def __init__(self, runtime: EDViTRuntime, line: Line, why_not_ready: Callable[[], str | None]) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry, buckets=_SECONDS)
        about = "Requests to /predict by result: ok, degraded, or the code of the error."
        self._requests = counter("edvit_requests", about, ["result"])
        about = "Requests to other paths that were refused, by the code of the error."
        self._turned_away = counter("edvit_refused_requests", about, ["code"])
        about = "From a request's first line to its answer, of those that got one."
        self._seconds = histogram("edvit_request_seconds", about)
        self._sub_models = histogram("edvit_sub_model_seconds", "A sub-model's own run.", ["sub_model"])
        self.registry.register(_Status(runtime, line, why_not_ready))
        ProcessCollector(registry=self.registry)

    def count(self, result: str, *, is_predict: bool) -> None:
        """One request more; other paths are counted where they are refused."""
        if is_predict:
            self._requests.labels(result).inc()
        elif result != "ok":
            self._turned_away.labels(result).inc()

    def answered(self, answer: Answer, seconds: float) -> None:
        """An answer was given."""
        self._seconds.observe(seconds)
        for index, milliseconds in enumerate(answer.milliseconds):
            if milliseconds is not None:
                self._sub_models.labels(str(index)).observe(milliseconds / 1e3)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)


class _Status:
    """Reads the runtime and the line when asked, instead of counting along."""

    def __init__(self, runtime: EDViTRuntime, line: Line, why_not_ready: Callable[[], str | None]) -> None:
        self._runtime, self._line, self._why_not_ready = runtime, line, why_not_ready

    def collect(self) -> Iterator[Metric]:
        """See `prometheus_client.registry.Collector`."""
        status, entry = self._runtime.status(), self._runtime.manifest.ensemble
        missing = CounterMetricFamily(
            "edvit_sub_model_missing", "Answers without a sub-model, by reason.", labels=["sub_model", "reason"]
        )
        for row in status["missing"]:
            missing.add_metric([str(row["sub_model"]), row["reason"]], row["count"])
        breakers = GaugeMetricFamily(
            "edvit_breaker_open", "1: the sub-model is left alone until it answers a probe.", labels=["sub_model"]
        )
        for index, state in status["breakers"].items():
            breakers.add_metric([str(index)], float(state == "open"))
        line = GaugeMetricFamily("edvit_line", "Requests that are answered or wait.", labels=["place"])
        line.add_metric(["answered"], float(min(1, self._line.inside)))
        line.add_metric(["waiting"], float(max(0, self._line.inside - 1)))
        yield from (missing, breakers, line)
        rejected = self._line.rejected + status["queue"]["rejected"]
        yield CounterMetricFamily("edvit_rejected", "Requests that found no place in the line.", value=rejected)
        yield GaugeMetricFamily("edvit_load", "Offered, as a share of what can be answered.", value=self._line.load)
        yield GaugeMetricFamily("edvit_ready", "1: /ready answers 200.", value=float(self._why_not_ready() is None))
        about: dict[str, Any] = {"id": entry.id, "content_hash": entry.content_hash, "task": entry.task}
        yield InfoMetricFamily("edvit_ensemble", "What is served.", value=about)
