"""GET /metrics: the counts of the API and of all replicas in Prometheus' format, ours and under vLLM's names.

Scrapes that come while one is being collected share it, and its text.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence

from fastapi import FastAPI, Request, Response
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from api.backend import Backend
from api.meter import Meter
from api.replica_metrics import replica_families
from api.single_flight import SingleFlight

OURS, VLLMS = "draftpool_", "vllm:"
LABELS = {"model": "model_name", "replica": "engine"}  # ours, and what vLLM calls them
ALIASED = frozenset(
    {"request_success", "prompt_tokens", "generation_tokens", "time_to_first_token_seconds"}
    | {"inter_token_latency_seconds", "request_time_per_output_token_seconds", "e2e_request_latency_seconds"}
    | {"num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "num_preemptions"}
    | {"prefix_cache_queries", "prefix_cache_hits", "request_queue_time_seconds"}
    | {"spec_decode_num_drafts", "spec_decode_num_draft_tokens", "spec_decode_num_accepted_tokens"}
    | {"spec_decode_num_accepted_tokens_per_pos"}
)

Gather = Callable[[], Awaitable[Sequence[Metric]]]


class Families(Collector):
    """Metrics that were gathered already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


class Scrape:
    """What one collection found, written once in each format that is asked for."""

    def __init__(self, families: Sequence[Metric]) -> None:
        aliases = [alias(metric) for metric in families if metric.name.removeprefix(OURS) in ALIASED]
        self._families = Families([*families, *aliases])
        self._texts: dict[str, bytes] = {}

    def response(self, accept: str) -> Response:
        encode, content_type = choose_encoder(accept)
        if content_type not in self._texts:
            self._texts[content_type] = encode(self._families)
        return Response(self._texts[content_type], headers={"content-type": content_type})


def add_metrics_route(app: FastAPI, backend: Backend, gather: Gather) -> None:
    """gather: what every process of the API has counted."""

    async def collect() -> Scrape:
        return Scrape(merged([*await gather(), *replica_families(await backend.stats())]))

    scraped = SingleFlight(collect)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        return (await scraped()).response(request.headers.get("accept", ""))


def gather_own(meter: Meter) -> Gather:
    """For an API of one process."""

    async def gather() -> Sequence[Metric]:
        return meter.families()

    return gather


def merged(families: Iterable[Metric]) -> list[Metric]:
    """Each metric once, with the samples of all processes, as the format demands."""
    by_name: dict[str, Metric] = {}
    for metric in families:
        first = by_name.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
        first.samples += metric.samples
    return list(by_name.values())


def alias(metric: Metric) -> Metric:
    """The metric under vLLM's name, with vLLM's labels."""
    copy = Metric(_vllms(metric.name), metric.documentation, metric.type)
    copy.samples = [
        Sample(_vllms(name), {LABELS.get(label, label): value for label, value in labels.items()}, number)
        for name, labels, number, *_ in metric.samples
    ]
    return copy


def _vllms(name: str) -> str:
    return VLLMS + name.removeprefix(OURS)
