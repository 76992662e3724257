"""Where a step gets its proposals: nowhere, from the pool in turn, or from what the pool drafted ahead (ahead.py)."""

from __future__ import annotations

from typing import Protocol

from targets.drafting import Drafting
from targets.passes import Pass
from targets.proposals import Proposals, nothing
from targets.scheduler import Schedule


class Source(Protocol):
    def proposals(self, schedule: Schedule) -> Proposals:
        """One for each decoding sequence, at most as long as planned. Called once in every round."""

    def during(self, schedule: Schedule, proposals: Proposals, running: Pass) -> None:
        """As the pass begins. It may be run a part of its way here; the step finishes it."""


class NoSource:
    """Plain decoding, without a pool."""

    def proposals(self, schedule: Schedule) -> Proposals:
        return nothing(len(schedule.decoding))

    def during(self, schedule: Schedule, proposals: Proposals, running: Pass) -> None:
        return None


class InTurn:
    """The pool drafts, and then the target verifies."""

    def __init__(self, drafting: Drafting) -> None:
        self._drafting = drafting

    def proposals(self, schedule: Schedule) -> Proposals:
        return self._drafting.draft(schedule.decoding, schedule.plan)

    def during(self, schedule: Schedule, proposals: Proposals, running: Pass) -> None:
        return None
