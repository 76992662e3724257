"""Policies: from what a target sees of its batch to how deep and how far each sequence is drafted.

    plan -> (the pool drafts, the target verifies) -> observe

A policy holds no clock. Off and Fixed know nothing; Ema is the obvious way to learn, Goodput is the router.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from protocol.plan import BatchView, Mode, Plan, SequenceView
from protocol.record import RoundRecord
from router.belief import DRAFT, learn, prior
from router.decide import Decision, decide
from router.rounds import Guess, batch_of, rounds_of
from router.seen import Seen, exit_of
from router.tables import Costs

PAUSE_MS = 20.0  # of rounds that a decision stands for
EMA_RATE, EMA_SHARE, EMA_REST = 0.7, 0.1, 32  # as guessed at first; of a round; rounds of rest


class Policy(Protocol):
    def opening(self) -> int | None:
        """The depth at which the context of an admitted sequence is handed to the pool; None: not before it drafts."""

    def plan(self, view: BatchView) -> Plan:
        """One length per sequence of the view, none longer than what the sequence can still commit."""

    def observe(self, record: RoundRecord) -> None:
        """What came of the plan."""


class StaticPolicy:
    """Learns nothing."""

    def observe(self, record: RoundRecord) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Off(StaticPolicy):
    """Plain decoding."""

    def opening(self) -> int | None:
        return None

    def plan(self, view: BatchView) -> Plan:
        return Plan(depth=None, lengths=(0,) * len(view.sequences))


@dataclass(frozen=True, slots=True)
class Fixed(StaticPolicy):
    """The same depth and length every round, cut where the sequence ends: a round commits length + 1 at most."""

    depth: int
    length: int
    mode: Mode = Mode.IN_TURN

    def opening(self) -> int | None:
        return self.depth if self.length else None

    def plan(self, view: BatchView) -> Plan:
        return replace(uniform(view, self.depth, self.length), mode=self.mode)


class Ema:
    """SmartSpec (Liu et al. 2024): a moving average of acceptance, and the best arm for it by the profile.

    Exits that are not in use are taken to be as good as the one that is. Once off, it drafts again after a while.
    """

    def __init__(self, costs: Costs) -> None:
        self.costs = costs
        self.rates = [EMA_RATE] * len(costs.exits)
        self._prior, self._factors = prior(costs), [1.0] * (DRAFT + 1)
        self._num_rested = 0

    def opening(self) -> int | None:
        return None if self._num_rested else self.costs.exits[0]

    def plan(self, view: BatchView) -> Plan:
        if not view.sequences:
            return Plan(None, ())
        batch = replace(batch_of(view, self.costs), modes=(Mode.IN_TURN,))
        if batch.room < 1:
            return Plan(None, (0,) * len(view.sequences))
        rounds = rounds_of(self._prior, self.costs, batch, Guess(self.rates, self._factors, ()))
        best = [min(rounds.by_length(Mode.IN_TURN, exit_)) for exit_ in range(len(self.rates))]
        exit_ = best.index(min(best))
        pace, length, *_ = best[exit_]
        if rounds.off()[0] <= pace:
            self._num_rested += 1
            length = 0 if self._num_rested % EMA_REST else 1
        else:
            self._num_rested = 0
        return uniform(view, self.costs.exits[exit_], length)

    def observe(self, record: RoundRecord) -> None:
        depth = record.plan.depth
        tried = sum([row.num_tried for row in record.rows])
        if tried and depth in self.costs.exits:
            share = sum([row.num_right for row in record.rows]) / tried
            at = self.costs.exits.index(depth)
            known = self.rates[at] + EMA_SHARE * (min(max(share, 0.01), 0.99) - self.rates[at])
            self.rates = [known] * len(self.rates)


class Goodput:
    """The arm with the most expected tokens per second. Not thread-safe: the engine's thread owns it."""

    def __init__(self, costs: Costs) -> None:
        self.costs = costs
        self.belief = prior(costs)
        self.decision = Decision()
        self.view: BatchView | None = None  # of the last decision
        self.seen: Seen | None = None  # since the belief was last brought up to date
        self._mode = Mode.IN_TURN  # of the last round
        self._ms = 0.0  # since the last decision

    def opening(self) -> int | None:
        """None where drafts would not pay even for contexts that the pool has read, and while off where it reads them
        only as the target waits: then a trial pays for handing them over.
        """
        at_once = self.view is None or self.view.reads_meanwhile
        exit_ = self.decision.opening if at_once else self.decision.arm.exit
        return None if exit_ is None else self.costs.exits[exit_]

    def plan(self, view: BatchView) -> Plan:
        if not view.sequences:
            return Plan(None, ())
        if self._is_due():
            self._learn()
            before = self.decision
            self.decision = decide(self.belief, self.costs, view, before.arm, before.opening)
            self.view, self._ms = view, 0.0
        arm = self.decision.arm
        if arm.exit is None:
            return Plan(None, (0,) * len(view.sequences))
        plan = uniform(view, self.costs.exits[arm.exit], self.decision.length)
        mode = arm.mode if arm.mode in view.modes else Mode.IN_TURN
        return replace(plan, stop_probability=self.decision.stop_probability, mode=mode)

    def observe(self, record: RoundRecord) -> None:
        if not record.rows:
            return
        if self.seen is None or not self.seen.takes(record, self.costs):
            self._learn()
            mode, busy = record.plan.mode, self._mode is Mode.AHEAD and record.plan.mode is Mode.IN_TURN
            self.seen, self._mode = Seen(len(record.rows), mode, exit_of(record, self.costs), busy), mode
        self.seen.add(record, self.costs)
        self._ms += record.draft_ms + record.verify_ms + record.rest_ms

    def _learn(self) -> None:
        if self.seen is not None:
            self.belief, self.seen = learn(self.belief, self.costs, self.seen), None

    def _is_due(self) -> bool:
        """During a trial, and while no draft fits, every round decides again; else a decision stands for PAUSE_MS."""
        no_room = self.decision.arm.exit is not None and not self.decision.length
        return self.view is None or self.decision.trial or no_room or self._ms >= PAUSE_MS


def uniform(view: BatchView, depth: int, length: int) -> Plan:
    lengths = tuple([min(length, row.remaining - 1) if row.drafts else 0 for row in view.sequences])
    return Plan(depth if any(lengths) else None, lengths)


def granted(view: BatchView, plan: Plan) -> Plan:
    """The plan, in which requests that ask for their own depth and length get these."""
    if all(sequence.asked is None for sequence in view.sequences):
        return plan
    rows = [_row(plan, index, sequence) for index, sequence in enumerate(view.sequences)]
    lengths = tuple(length for _, length in rows)
    own = tuple(depth if length else None for depth, length in rows)
    first = next((depth for depth in own if depth is not None), None)
    return replace(plan, depth=plan.depth or first, lengths=lengths, own=own)


def _row(plan: Plan, index: int, sequence: SequenceView) -> tuple[int | None, int]:
    asked = sequence.asked
    if asked is None:
        return (plan.own[index] if plan.own else None), plan.lengths[index]
    length = min(asked.length, sequence.remaining - 1)
    return (asked.depth if length else None), length
