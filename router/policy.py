"""Policies: from what a target sees of its batch to how deep and how far each sequence is drafted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from protocol.plan import BatchView, DepthRule, Plan


class Policy(Protocol):
    def plan(self, view: BatchView) -> Plan:
        """One length per sequence of the view, none longer than what the sequence can still commit."""


@dataclass(frozen=True, slots=True)
class Off:
    """Plain decoding."""

    def plan(self, view: BatchView) -> Plan:
        return Plan(depth=None, lengths=(0,) * len(view.sequences))


@dataclass(frozen=True, slots=True)
class Fixed:
    """The same depth and length every round, cut where the sequence ends: a round commits length + 1 at most."""

    depth: DepthRule
    length: int

    def plan(self, view: BatchView) -> Plan:
        lengths = tuple(min(self.length, sequence.remaining - 1) for sequence in view.sequences)
        return Plan(self.depth if any(lengths) else None, lengths)
