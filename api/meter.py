"""What one process of the API counts: requests, their tokens and times, and its answers by status.

A piece is what one delta of a stream brings: the tokens of a round, or of several under load.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from api.version import version

FIRST = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10)
WHOLE = (0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920)


class Meter:
    """The counts of one application, in a registry of its own. replica: the name of this process, a label of all."""

    def __init__(self, replica: str = "0", clock: Callable[[], float] = time.perf_counter) -> None:
        """clock: seconds."""
        self.replica, self.clock = replica, clock
        self._registry = CollectorRegistry()
        counter = partial(Counter, namespace="draftpool", registry=self._registry)
        gauge = partial(Gauge, namespace="draftpool", registry=self._registry)
        histogram = partial(Histogram, labelnames=["model"], namespace="draftpool", registry=self._registry)
        self.open = gauge("open_requests", "Completions that are being made, one for each choice.", ["model"])
        self.ended = counter(
            "request_success",
            "Completions that ended, by how: stop, length, abort (the client left, its time was over, or another "
            "choice failed) or error. Refused ones are in http_responses.",
            ["model", "finished_reason"],
        )
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts that got an answer.", ["model"])
        self.generation_tokens = counter("generation_tokens", "Tokens that were answered.", ["model"])
        self.first_s = histogram(
            "time_to_first_token_seconds", "From a streamed request to its first piece.", buckets=FIRST
        )
        self.between_s = histogram(
            "inter_token_latency_seconds", "Between two pieces of a stream, once for each piece.", buckets=BETWEEN
        )
        self.per_token_s = histogram(
            "request_time_per_output_token_seconds",
            "Mean time of a token behind the first piece, once for each stream that ended.",
            buckets=BETWEEN,
        )
        self.whole_s = histogram(
            "e2e_request_latency_seconds", "From a request to its last token, streamed or not.", buckets=WHOLE
        )
        self.responses = counter("http_responses", "Answers over HTTP, by route and status.", ["route", "status"])
        self.calls = counter("grpc_calls", "Calls over gRPC, by method and status.", ["method", "code"])
        gauge("build_info", "Always 1; the label says what runs.", ["version"]).labels(version()).set(1)

    def families(self) -> list[Metric]:
        """All counts, with the label of this process and without the times of their creation."""
        return [self._labelled(metric) for metric in self._registry.collect()]

    def _labelled(self, metric: Metric) -> Metric:
        """A copy. Some clients would take a sample that ends in _created for a count."""
        copy = Metric(metric.name, metric.documentation, metric.type)
        copy.samples = [
            Sample(sample.name, {**sample.labels, "replica": self.replica}, sample.value)
            for sample in metric.samples
            if not sample.name.endswith("_created")
        ]
        return copy
