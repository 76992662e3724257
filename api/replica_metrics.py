"""What replicas tell of themselves (`Backend.stats`), as Prometheus metrics. What one does not tell is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from protocol.stats import QUEUE_BOUNDS_S

Told = Mapping[str, Any]
Values = Mapping[str, float]  # by the value of a row's own label
Read = Callable[[Told], Values]


@dataclass(frozen=True, slots=True)
class Row:
    """One metric of a replica, without the prefix of its name. label: its own, beside those that say whose it is."""

    family: type[CounterMetricFamily | GaugeMetricFamily]
    name: str
    help: str
    read: Read
    label: str | None = None


counter, gauge = partial(Row, CounterMetricFamily), partial(Row, GaugeMetricFamily)


def count(key: str, *, unit: float = 1.0) -> Read:
    """unit: what a count of 1 means."""
    return lambda told: {"": told[key] * unit} if told.get(key) is not None else {}


def of(key: str, names: Mapping[str, str]) -> Read:
    """Some counts of a mapping, under other names."""
    return lambda told: {names[each]: number for each, number in (told.get(key) or {}).items() if each in names}


def parts(told: Told) -> Values:
    return {part: told[f"{part}_ms"] / 1e3 for part in ("draft", "verify", "rest") if f"{part}_ms" in told}


def positions(told: Told) -> Values:
    return {str(position): number for position, number in enumerate(told.get("num_accepted_by_position", ()))}


def kv_use(told: Told) -> Values:
    return {"": 1 - told["num_free_pages"] / told["num_pages"]} if told.get("num_pages") else {}


TARGET = (
    gauge("num_requests_running", "Requests that hold memory and are decoded or prefilled.", count("num_running")),
    gauge("num_requests_waiting", "Requests in the queue.", count("num_waiting")),
    gauge("kv_cache_usage_perc", "Share of the pages of KV memory that are in use, 0 to 1.", kv_use),
    gauge("kv_pages", "Pages of KV memory.", count("num_pages")),
    counter("steps", "Passes of the target.", count("num_steps")),
    counter("rounds", "Passes with sequences that decode.", count("num_rounds")),
    counter(
        "prefill_tokens", "Prompt tokens that were computed, again after a preemption.", count("num_prefill_tokens")
    ),
    counter("committed_tokens", "Tokens that rounds and prompts gave.", count("num_committed")),
    counter(
        "prefix_cache_queries",
        "Prompt tokens of requests when they were admitted, looked up among the kept ones.",
        count("num_queried_tokens"),
    ),
    counter("prefix_cache_hits", "Of these, tokens whose KV was kept: not computed.", count("num_hit_tokens")),
    counter("num_preemptions", "Sequences that lost their KV memory to others.", count("num_preempted")),
    counter("spec_decode_num_drafts", "Proposals that were verified.", count("num_drafts")),
    counter("spec_decode_num_draft_tokens", "Proposed tokens that were verified.", count("num_proposed")),
    counter("spec_decode_num_accepted_tokens", "Proposed tokens that were accepted.", count("num_accepted")),
    counter(
        "spec_decode_num_accepted_tokens_per_pos",
        "Proposals whose token at this position, from 0, was accepted.",
        positions,
        "position",
    ),
    counter("hit_drafts", "Proposals that were at hand, drafted ahead.", count("num_hits")),
    counter(
        "missed_drafts", "Rows of rounds ahead that were to have a proposal and had none at hand.", count("num_misses")
    ),
    counter("unanswered_rounds", "Rounds that asked for drafts in vain.", count("num_unanswered")),
    counter(
        "round_seconds",
        "Time of rounds by part: draft (until the proposals are there), verify (the pass), rest.",
        parts,
        "part",
    ),
    counter("draft_wait_seconds", "Of the time of drafts, queued at the pool.", count("wait_ms", unit=1e-3)),
    counter("hit_rounds", "Rounds whose proposals were all at hand.", count("num_hit_rounds")),
    counter(
        "hit_draft_seconds", "Draft time of rounds whose proposals were all at hand.", count("hit_draft_ms", unit=1e-3)
    ),
    counter("fresh_rounds", "Rounds that waited for a fresh draft.", count("num_fresh_rounds")),
    counter(
        "fresh_draft_seconds", "Draft time of rounds that waited for a fresh one.", count("fresh_draft_ms", unit=1e-3)
    ),
    counter(
        "link_bytes",
        "Bytes to and from draft replicas.",
        of("link", {"sent_bytes": "sent", "received_bytes": "received"}),
        "direction",
    ),
    counter(
        "translated_tokens",
        "Tokens for a drafter of another tokenizer: all, and shared by both vocabularies.",
        of("translation", {"num_tokens": "all", "num_shared": "shared"}),
        "kind",
    ),
    counter("failures", "Failures that cost speed and no request; the log says of what.", count("num_failures")),
)

POOL = (
    gauge("pool_sequences", "Sequences that a draft replica holds.", count("num_sequences")),
    gauge("pool_kv_cache_usage_perc", "Share of the pages of KV memory that are in use, 0 to 1.", kv_use),
    gauge("pool_kv_pages", "Pages of KV memory.", count("num_pages")),
    gauge("pool_wait_seconds", "Time that a row waits for its pass, a running mean.", count("wait_ms", unit=1e-3)),
    counter("pool_passes", "Passes of the drafter.", count("num_passes")),
    counter("pool_mixed_passes", "Passes with rows of several targets.", count("num_mixed_passes")),
    counter("pool_rows", "Rows of the drafter's passes.", count("num_rows")),
    counter(
        "pool_pass_seconds",
        "Time in passes of the drafter; per second, the share of it that the replica is busy.",
        count("pass_ms", unit=1e-3),
    ),
    counter("pool_read_tokens", "Tokens of texts that passes read, drafted ones apart.", count("num_read")),
    counter("pool_prefix_hit_tokens", "Tokens of texts that another sequence had read.", count("num_adopted")),
    counter("pool_drafted_tokens", "Tokens that were drafted.", count("num_drafted")),
    counter("pool_busy", "Rows that were answered BUSY.", count("num_busy")),
    counter(
        "pool_not_yet", "Rows that were answered NOT_YET: without a draft, for want of time.", count("num_not_yet")
    ),
    counter("pool_evictions", "Sequences that made room for others.", count("num_evicted")),
    counter("pool_branches", "Branches that were handed over whole.", count("num_branches")),
)


def replica_families(stats: Mapping[str, Any]) -> Iterator[Metric]:
    """stats: as `Backend.stats` tells. A replica without a name has its place in the list."""
    targets: Mapping[str, Sequence[Told]] = stats.get("targets", {})
    pool: Sequence[Told] = stats.get("pool", ())
    up = GaugeMetricFamily("draftpool_replicas", "Replicas of a target that answer.", labels=["model"])
    for model, replicas in targets.items():
        up.add_metric([model], len(replicas))
    yield up
    yield GaugeMetricFamily("draftpool_pool_replicas", "Replicas of the pool that answer.", len(pool))
    of_targets = [([model, name], told) for model, replicas in targets.items() for name, told in _named(replicas)]
    yield from (_family(row, ["model", "replica"], of_targets) for row in TARGET)
    yield _queue_times(of_targets)
    of_pool = [([name], told) for name, told in _named(pool)]
    yield from (_family(row, ["replica"], of_pool) for row in POOL)


def _queue_times(told: Sequence[tuple[list[str], Told]]) -> Metric:
    family = HistogramMetricFamily(
        "draftpool_request_queue_time_seconds",
        "From a request at the target to its place in the batch, once for each.",
        labels=["model", "replica"],
    )
    bounds = [*map(str, QUEUE_BOUNDS_S), "+Inf"]
    for whose, counts in told:
        if (times := counts.get("queue_times")) is not None:
            buckets = list(zip(bounds, accumulate(times["counts"]), strict=True))
            family.add_metric(whose, buckets, times["sum_s"])
    return family


def _named(replicas: Sequence[Told]) -> list[tuple[str, Told]]:
    return [(told.get("replica", str(place)), told) for place, told in enumerate(replicas)]


def _family(row: Row, labels: list[str], told: Sequence[tuple[list[str], Told]]) -> Metric:
    family = row.family(f"draftpool_{row.name}", row.help, labels=[*labels, row.label] if row.label else labels)
    for whose, counts in told:
        for value, number in row.read(counts).items():
            family.add_metric([*whose, value] if row.label else whose, number)
    return family
