"""From the speculation section of a config to the policy of a target.

A fixed depth and a table are there from the start. What goodput chooses from are the exits of the drafter, at what
they cost, and that a draft replica tells: until the first one does, decoding is plain.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from deployments.config_speculation import FixedSpeculation, GoodputSpeculation, Ladder, Speculation, TableSpeculation
from link.discovery import PoolMember
from protocol.plan import BatchView, DepthRule, Mode, Plan
from protocol.record import RoundRecord
from router.costs import CostCurves, ModelKey, TargetCosts
from router.explain import describe
from router.goodput import Goodput, GoodputConfig
from router.policy import Fixed, Off, Policy, Table

THRESHOLD = 0.5

logger = logging.getLogger(__name__)


def policy(speculation: Speculation | None) -> Policy:
    """What a target can start with; for goodput that is plain decoding."""
    if isinstance(speculation, FixedSpeculation):
        mode = speculation.mirror.modes[-1] if speculation.mirror else Mode.SERIAL
        return Fixed(depth_rule(speculation), speculation.length, mode)
    if isinstance(speculation, TableSpeculation):
        return Table(depth_rule(speculation), tuple(speculation.table.items()))
    return Off()


def longest_draft(speculation: Speculation | None) -> int | None:
    """That a request may ask for; None: without speculation it makes no difference."""
    if speculation is None:
        return None
    if speculation.request_length is not None:
        return speculation.request_length
    return max(speculation.table.values()) if isinstance(speculation, TableSpeculation) else speculation.length


def depth_rule(ladder: Ladder) -> DepthRule:
    if ladder.depth == "cascade":
        return cascade(ladder.exits, ladder.thresholds)
    return DepthRule((ladder.depth,))


def cascade(exits: tuple[int, ...], thresholds: tuple[float, ...] | None) -> DepthRule:
    return DepthRule(exits, (THRESHOLD,) * (len(exits) - 1) if thresholds is None else thresholds)


def needed_exits(speculation: Speculation) -> tuple[int, ...]:
    """What the drafter must have; empty: any will do."""
    if isinstance(speculation, GoodputSpeculation):
        return speculation.exits or ()
    return depth_rule(speculation).exits


def depth_rules(settings: GoodputSpeculation, exits: tuple[int, ...]) -> tuple[DepthRule, ...]:
    """What there is to choose from. exits: the drafter's. Raises ValueError for thresholds that are not theirs."""
    chosen = settings.exits or exits
    ladder = (cascade(chosen, settings.thresholds),) if settings.cascade and len(chosen) > 1 else ()
    return (*(DepthRule((exit_,)) for exit_ in chosen), *ladder)


def goodput_config(settings: GoodputSpeculation, exits: tuple[int, ...], max_rows: int) -> GoodputConfig:
    """exits: the drafter's."""
    return GoodputConfig(
        rules=depth_rules(settings, exits),
        exits=exits,
        length=settings.length,
        max_rows=max_rows,
        hysteresis=settings.hysteresis,
        probe_share=settings.probe_share,
        linked=True,
    )


class Learning:
    """Goodput over whatever drafter the target is linked with, anew for each kind of drafter; plain before the first.

    The engine's thread asks it; drafters come, and questions what it believes, from others: one lock. A round is
    finished by the policy that planned it.
    """

    def __init__(self, name: str, costs: TargetCosts, settings: GoodputSpeculation, max_rows: int) -> None:
        self._name, self._costs, self._settings, self._max_rows = name, costs, settings, max_rows
        self._drafter: tuple[ModelKey, tuple[int, ...]] | None = None
        self._lock = threading.Lock()
        self._next: Off | Goodput = Off()
        self._planned: Off | Goodput = self._next

    def linked(self, member: PoolMember) -> None:
        """From now on drafts come from this replica."""
        if member.costs is None or self._drafter == (member.costs.key, member.exits):
            return
        curves = CostCurves(self._name, self._costs, member.costs)
        made = Goodput(curves, goodput_config(self._settings, member.exits, self._max_rows))
        with self._lock:
            self._next = made
        self._drafter = (member.costs.key, member.exits)
        logger.info("choosing from exits %s of %s", member.exits, member.incarnation)

    def describe(self) -> dict[str, Any]:
        with self._lock:
            return describe(self._next)

    def opening(self) -> DepthRule | None:
        with self._lock:
            return self._next.opening()

    def plan(self, view: BatchView) -> Plan:
        with self._lock:
            self._planned = self._next
            return self._planned.plan(view)

    def observe(self, record: RoundRecord) -> None:
        with self._lock:
            self._planned.observe(record)
