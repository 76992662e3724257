"""A target's counts as /debug/stats tells them: totals, and the few ratios that one would work out from them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from link.connection import Traffic
from protocol.stats import EngineStats, MirrorStats, Runs


def told(stats: EngineStats, steps: Runs, traffic: Traffic | None = None) -> dict[str, Any]:
    """steps: who takes them. traffic: with draft replicas; None where there is no link to any."""
    mirror = stats.mirror and asdict(stats.mirror) | ratios(stats.mirror, stats.num_committed)
    return asdict(stats) | {
        "steps_run": asdict(steps),
        "mirror": mirror,
        "link": traffic and link(traffic, stats.num_steps),
    }


def link(traffic: Traffic, num_rounds: int) -> dict[str, float | None]:
    return asdict(traffic) | {"bytes_per_round": _ratio(traffic.sent_bytes + traffic.received_bytes, num_rounds)}


def ratios(mirror: MirrorStats, num_committed: int) -> dict[str, float | None]:
    """hit_rate: of the outcomes that branches were asked for, how many one was behind. tokens_per_committed: drafted
    ahead for each token of text. hidden_on_hits: of the wait for a fresh draft, what is gone where windows are at hand.
    None before there is anything to divide by.
    """
    fresh_ms = _ratio(mirror.fresh_wait_ms, mirror.num_fresh_rounds)
    hit_ms = _ratio(mirror.hit_wait_ms, mirror.num_hit_rounds)
    return {
        "hit_rate": _ratio(mirror.num_hits, mirror.num_hits + mirror.num_misses),
        "tokens_per_committed": _ratio(mirror.num_tokens, num_committed),
        "wait_ms_per_round": _ratio(mirror.wait_ms, mirror.num_rounds),
        "hidden_on_hits": round(1 - hit_ms / fresh_ms, 4) if fresh_ms and hit_ms is not None else None,
    }


def _ratio(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None
