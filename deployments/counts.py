"""A target's counts as /debug/stats tells them: totals, and the few ratios that one would work out from them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from protocol.stats import EngineStats, MirrorStats


def told(stats: EngineStats) -> dict[str, Any]:
    mirror = stats.mirror and asdict(stats.mirror) | ratios(stats.mirror, stats.num_committed)
    return asdict(stats) | {"mirror": mirror}


def ratios(mirror: MirrorStats, num_committed: int) -> dict[str, float | None]:
    """hit_rate: of the outcomes that branches were asked for, how many one was behind. tokens_per_committed: drafted
    ahead for each token of text. None before there is anything to divide by.
    """
    return {
        "hit_rate": _ratio(mirror.num_hits, mirror.num_hits + mirror.num_misses),
        "tokens_per_committed": _ratio(mirror.num_tokens, num_committed),
        "wait_ms_per_round": _ratio(mirror.wait_ms, mirror.num_rounds),
    }


def _ratio(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None
