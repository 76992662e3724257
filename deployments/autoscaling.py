"""How many replicas a deployment wants: a pure decision over how busy each is, and the policy through which Serve asks.

Serve pickles this module by value and runs the policy in its controller, so nothing of ours is imported here. How long
a wish must last before it counts, and the bounds, are Serve's own options.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

# What replicas tell of themselves: what they have to do over what they do at once. Above 1 there is a queue.
BUSY = "busy"


def wanted(loads: Collection[float], num_replicas: int, busy: float, calm: float) -> int:
    """loads: of the replicas that told theirs. busy, calm: what each may have before another comes, and at most when
    one has gone. In between nothing changes, so a steady load never makes replicas come and go.
    """
    total = sum(loads)
    more = math.ceil(total / busy)
    if more > num_replicas:
        return more
    return min(max(math.ceil(total / calm), 1), num_replicas)


class BusyPolicy:
    """places: what a replica does at once, of requests that still wait at handles; 0: none wait there."""

    def __init__(self, busy: float, calm: float, places: int = 0) -> None:
        self._busy, self._calm, self._places = busy, calm, places

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """context: Serve's AutoscalingContext. While a replica does not tell its load, none is removed."""
        loads = list((context.aggregated_metrics or {}).get(BUSY, {}).values())
        if self._places:
            loads.append(context.total_queued_requests / self._places)
        asked = wanted(loads, context.target_num_replicas, self._busy, self._calm)
        if len(loads) - bool(self._places) < context.target_num_replicas:
            asked = max(asked, context.target_num_replicas)
        return asked, {}


def busy_share(passes: Collection[tuple[float, float]], now: float, window_s: float) -> float:
    """Of the last window_s, in passes. passes: when each ended, and how long it took, in seconds."""
    begin = now - window_s
    spent = sum(end - max(end - took_s, begin) for end, took_s in passes if end > begin)
    return min(spent / window_s, 1.0)
