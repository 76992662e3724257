"""From the speculation section of a config to the policy of a target.

A fixed depth and a table are there from the start. An adaptive policy chooses from the exits of the drafter at their
costs, which a draft replica tells: until the first one does, decoding is plain.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from deployments.config_speculation import (
    AdaptiveSpeculation,
    EmaSpeculation,
    FixedSpeculation,
    Ladder,
    Speculation,
    TableSpeculation,
)
from link.discovery import PoolMember
from protocol.plan import BatchView, DepthRule, Mode, Plan, cascade
from protocol.record import RoundRecord
from router.costs import CostCurves, ModelKey, TargetCosts
from router.explain import describe
from router.policy import Ema, Fixed, Goodput, Off, Policy, Table
from router.tables import tables

logger = logging.getLogger(__name__)


def policy(speculation: Speculation | None) -> Policy:
    """What a target can start with; for an adaptive policy that is plain decoding."""
    mode = speculation.mirror.modes[-1] if speculation and speculation.mirror else Mode.SERIAL
    if isinstance(speculation, FixedSpeculation):
        return Fixed(depth_rule(speculation), speculation.length, mode)
    if isinstance(speculation, TableSpeculation):
        return Table(depth_rule(speculation), tuple(speculation.table.items()), mode)
    return Off()


def adaptive(
    settings: AdaptiveSpeculation, curves: CostCurves, exits: tuple[int, ...], max_rows: int, linked: bool = True
) -> Ema | Goodput:
    """exits: the drafter's. linked: drafts come over a link. Raises ConfigError for curves without a drafter."""
    costs = tables(curves, settings.exits or exits, settings.length, max_rows, linked)
    return Ema(costs) if isinstance(settings, EmaSpeculation) else Goodput(costs)


def longest_draft(speculation: Speculation | None) -> int | None:
    """The longest draft that a request may ask for; None without speculation, where it makes no difference."""
    if speculation is None:
        return None
    if speculation.request_length is not None:
        return speculation.request_length
    return max(speculation.table.values()) if isinstance(speculation, TableSpeculation) else speculation.length


def depth_rule(ladder: Ladder) -> DepthRule:
    if ladder.depth != "cascade":
        return DepthRule((ladder.depth,))
    return cascade(ladder.exits, ladder.thresholds)


def needed_exits(speculation: Speculation) -> tuple[int, ...]:
    """What the drafter must have; empty: any will do."""
    if isinstance(speculation, AdaptiveSpeculation):
        return speculation.exits or ()
    return depth_rule(speculation).exits


class LinkedPolicy:
    """An adaptive policy over whatever drafter the target is linked with, anew for each kind; plain before the first.

    The engine's thread asks it; drafters come, and questions what it believes, from others: one lock.
    """

    def __init__(self, name: str, costs: TargetCosts, settings: AdaptiveSpeculation, max_rows: int) -> None:
        self._name, self._costs, self._settings, self._max_rows = name, costs, settings, max_rows
        self._drafter: tuple[ModelKey, tuple[int, ...]] | None = None
        self._lock = threading.Lock()
        self._next: Policy = Off()
        self._planned: Policy = self._next  # a round is finished by the policy that planned it

    def linked(self, member: PoolMember) -> None:
        """Takes over the exits and costs of the replica that drafts from now on."""
        if member.costs is None or self._drafter == (member.costs.key, member.exits):
            return
        curves = CostCurves(self._name, self._costs, member.costs)
        made = adaptive(self._settings, curves, member.exits, self._max_rows)
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
