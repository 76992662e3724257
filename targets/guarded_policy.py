"""A policy that may fail: a round without its word is decoded plainly, and verifies whatever was drafted."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index

from protocol.draft import DraftBlock
from protocol.outcome import RoundOutcome
from protocol.plan import BatchView, DepthRule, Plan
from router.policy import Off, Policy, drafted_lengths
from targets.fence import Fence

OFF = Off()


class GuardedPolicy:
    """A Policy that raises nothing and whose answers fit their questions, around one that promises neither."""

    def __init__(self, policy: Policy, fence: Fence) -> None:
        self._policy, self._fence = policy, fence

    def opening(self) -> DepthRule | None:
        depth = None
        if self._fence.open:
            with self._fence:
                depth = self._policy.opening()
        return depth

    def plan(self, view: BatchView) -> Plan:
        plan = None
        if self._fence.open:
            with self._fence:
                plan = fitting_plan(self._policy.plan(view), view)
        return OFF.plan(view) if plan is None else plan

    def prune(self, plan: Plan, drafts: Sequence[DraftBlock | None]) -> Sequence[int]:
        whole = drafted_lengths(drafts)
        lengths: Sequence[int] = whole
        if self._fence.open:
            with self._fence:
                lengths = fitting_lengths(self._policy.prune(plan, drafts), whole)
        return lengths

    def observe(self, outcome: RoundOutcome) -> None:
        if self._fence.open:
            with self._fence:
                self._policy.observe(outcome)


def fitting_plan(plan: Plan, view: BatchView) -> Plan:
    """The plan. Raises ValueError or TypeError where it is none for these sequences."""
    fitting_lengths(plan.lengths, [max(sequence.remaining - 1, 0) for sequence in view.sequences])
    num_rows = len(view.sequences)
    if plan.own and len(plan.own) != num_rows:
        raise ValueError(f"{num_rows} rows and the depths of {len(plan.own)}")
    if any(not 0 <= index(row) < num_rows for row in plan.probes):
        raise ValueError(f"probes {plan.probes} are not all among {num_rows} rows")
    if not 0.0 <= plan.floor <= 1.0:
        raise ValueError(f"floor {plan.floor} is no probability")
    return plan


def fitting_lengths(lengths: Sequence[int], most: Sequence[int]) -> Sequence[int]:
    """The lengths. Raises ValueError or TypeError unless they are numbers between 0 and `most`."""
    if len(lengths) != len(most) or any(not 0 <= index(own) <= top for own, top in zip(lengths, most, strict=True)):
        raise ValueError(f"lengths {lengths} are not between 0 and {most}")
    return lengths
