"""Policies: from what a target sees of its batch to how deep and how far each sequence is drafted.

    plan -> (the pool drafts, the target verifies) -> observe

A policy holds no clock and draws no random number: what it knows came in by `observe`. The ones here know nothing
and need not; router/goodput.py learns.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import Protocol

from protocol.plan import BatchView, DepthRule, Mode, Plan, SequenceView
from protocol.record import RoundRecord


class Policy(Protocol):
    def opening(self) -> DepthRule | None:
        """The depth at which the context of an admitted sequence is handed to the pool; None: not before it drafts."""

    def plan(self, view: BatchView) -> Plan:
        """One length per sequence of the view, none longer than what the sequence can still commit."""

    def observe(self, record: RoundRecord) -> None:
        """What came of the plan."""


class Steadfast:
    """Learns nothing."""

    def observe(self, record: RoundRecord) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Off(Steadfast):
    """Plain decoding."""

    def opening(self) -> DepthRule | None:
        return None

    def plan(self, view: BatchView) -> Plan:
        return Plan(depth=None, lengths=(0,) * len(view.sequences))


@dataclass(frozen=True, slots=True)
class Fixed(Steadfast):
    """The same depth and length every round, cut where the sequence ends: a round commits length + 1 at most."""

    depth: DepthRule
    length: int
    mode: Mode = Mode.SERIAL

    def opening(self) -> DepthRule | None:
        return self.depth if self.length else None

    def plan(self, view: BatchView) -> Plan:
        return replace(uniform(view, self.depth, self.length), mode=self.mode)


@dataclass(frozen=True, slots=True)
class Table(Steadfast):
    """Batch size to length, as profiled (Su et al. 2023, section 4): the entry of the last batch that is no larger.

    lengths: (batch, length) pairs, batches ascending; below the first one it counts too.
    """

    depth: DepthRule
    lengths: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        batches = [batch for batch, _ in self.lengths]
        if not batches or batches != sorted(set(batches)):
            raise ValueError(f"batches {batches} must ascend; give at least one")

    def opening(self) -> DepthRule | None:
        return self.depth

    def plan(self, view: BatchView) -> Plan:
        found = bisect_right(self.lengths, len(view.sequences), key=lambda entry: entry[0])
        return uniform(view, self.depth, self.lengths[max(found - 1, 0)][1])


def uniform(view: BatchView, depth: DepthRule, length: int) -> Plan:
    lengths = tuple(min(length, sequence.remaining - 1) for sequence in view.sequences)
    return Plan(depth if any(lengths) else None, lengths)


def granted(view: BatchView, plan: Plan) -> Plan:
    """The plan, with what requests ask for themselves in place of what it says of them."""
    if all(sequence.asked is None for sequence in view.sequences):
        return plan
    rows = [_row(plan, index, sequence) for index, sequence in enumerate(view.sequences)]
    lengths = tuple(length for _, length in rows)
    own = tuple(depth if length else None for depth, length in rows)
    first = next((depth for depth in own if depth is not None), None)
    return replace(plan, depth=plan.depth or first, lengths=lengths, own=own)


def _row(plan: Plan, index: int, sequence: SequenceView) -> tuple[DepthRule | None, int]:
    asked = sequence.asked
    if asked is None:
        return (plan.own[index] if plan.own else None), plan.lengths[index]
    length = min(asked.length, sequence.remaining - 1)
    return (DepthRule((asked.depth,)) if length else None), length
