"""A target's counts as /debug/stats shows them: totals, and the few ratios that a reader would compute from them."""

from __future__ import annotations

from dataclasses import asdict
from hashlib import sha256
from typing import Any

from link.connection import Traffic
from protocol.stats import EngineStats, Runs, TranslationCounts


def told(
    stats: EngineStats, steps: Runs, traffic: Traffic | None = None, translated: TranslationCounts | None = None
) -> dict[str, Any]:
    """steps: which code runs them. traffic: with draft replicas; None without links. translated: tokens for a drafter
    of another tokenizer.
    """
    return asdict(stats) | {
        "num_accepted_by_position": list(stats.num_accepted_by_position),
        "queue_times": {"counts": list(stats.queue_times.counts), "sum_s": stats.queue_times.sum_s},
        "ratios": ratios(stats),
        "steps_run": asdict(steps),
        "link": traffic and link(traffic, stats.num_steps),
        "translation": translated and translation(translated),
    }


def replica_name(incarnation: str) -> str:
    """A short name of a replica, new with every start, that does not reveal its incarnation."""
    return sha256(incarnation.encode()).hexdigest()[:8]


def link(traffic: Traffic, num_rounds: int) -> dict[str, float | None]:
    return asdict(traffic) | {"bytes_per_round": _ratio(traffic.sent_bytes + traffic.received_bytes, num_rounds)}


def translation(counts: TranslationCounts) -> dict[str, float | None]:
    return asdict(counts) | {"shared": _ratio(counts.num_shared, counts.num_tokens)}


def ratios(stats: EngineStats) -> dict[str, float | None]:
    """Each is None while there is nothing to divide by.

    hit_rate: of the rows of rounds ahead that needed a proposal, the share that had one at hand. hidden_on_hits: the
    share of the wait for a fresh draft that rounds save which ask for none.
    """
    fresh_ms = _ratio(stats.fresh_draft_ms, stats.num_fresh_rounds)
    hit_ms = _ratio(stats.hit_draft_ms, stats.num_hit_rounds)
    return {
        "acceptance_rate": _ratio(stats.num_accepted, stats.num_proposed),
        "hit_rate": _ratio(stats.num_hits, stats.num_hits + stats.num_misses),
        "draft_ms_per_round": _ratio(stats.draft_ms, stats.num_rounds),
        "verify_ms_per_round": _ratio(stats.verify_ms, stats.num_rounds),
        "hidden_on_hits": round(1 - hit_ms / fresh_ms, 4) if fresh_ms and hit_ms is not None else None,
    }


def _ratio(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None
