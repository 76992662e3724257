"""A policy that chooses from the exits of whatever drafter a target is linked with, at the costs which that tells."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from link.discovery import PoolMember
from protocol.plan import BatchView, Plan
from protocol.record import RoundRecord
from router.costs import CostCurves, DrafterCosts, ModelKey, TargetCosts
from router.explain import describe
from router.policy import Off, Policy

logger = logging.getLogger(__name__)

MakePolicy = Callable[[CostCurves, tuple[int, ...]], Policy]  # from costs and the exits of a drafter


class LinkedPolicy:
    """Plain decoding before the first drafter; a new policy for each kind of drafter.

    The engine's thread plans and observes; other threads report drafters and ask for descriptions: one lock.
    """

    def __init__(self, name: str, costs: TargetCosts, make: MakePolicy) -> None:
        self._name, self._costs, self._make = name, costs, make
        self._drafter: tuple[ModelKey, tuple[int, ...]] | None = None
        self._lock = threading.Lock()
        self._next: Policy = Off()
        self._planned: Policy = self._next  # a round is finished by the policy that planned it

    def linked(self, member: PoolMember) -> None:
        """Takes over the exits and costs of the replica that drafts from now on."""
        if member.costs is not None:
            self.drafted_by(member.costs, member.exits)

    def drafted_by(self, costs: DrafterCosts, exits: tuple[int, ...]) -> None:
        if self._drafter == (costs.key, exits):
            return
        policy = self._make(CostCurves(self._name, self._costs, costs), exits)
        with self._lock:
            self._next = policy
        self._drafter = (costs.key, exits)
        logger.info("choosing from exits %s", exits)

    def describe(self) -> dict[str, Any]:
        with self._lock:
            return describe(self._next)

    def opening(self) -> int | None:
        with self._lock:
            return self._next.opening()

    def plan(self, view: BatchView) -> Plan:
        with self._lock:
            self._planned = self._next
            return self._planned.plan(view)

    def observe(self, record: RoundRecord) -> None:
        with self._lock:
            self._planned.observe(record)
