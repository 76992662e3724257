"""The lanes turn: one half of the batch is drafted for while the other half is verified, and then the other way round.

    take     the drafts for the ready lane, which were asked for before the last pass
    ask      for the other lane: the pool drafts while the target verifies
    verify   the ready lane, and chunks of prompts; commit, as in targets/step.py

Weights are read twice for what one pass would commit, so this pays where passes are bound by arithmetic, in large
batches, and where drafts are slow. A sequence alternates with its lane. The first lane is drafted for in turn, and
lanes end, for the whole batch to be verified at once, when nothing comes or nothing is wanted.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from protocol.branch import MirrorClient
from protocol.plan import Plan
from router.modes import Mode
from targets.drafting import Asked, Drafting, Drafts
from targets.scheduler import Schedule
from targets.sequence import Sequence as Decoding
from targets.step import Marks, Stepper
from targets.timeline import Lap, RoundRecord


@dataclass(frozen=True, slots=True)
class Flight:
    """A lane whose drafts are on their way. ids: of its sequences, in the order of the plan."""

    ids: tuple[int, ...]
    plan: Plan
    asked: Asked


class Lanes:
    """Steps of a stepper. What is in flight is taken by the next step or dropped; nothing is waited for twice."""

    def __init__(self, stepper: Stepper, pool: Drafting, client: MirrorClient) -> None:
        """client: that of `pool`."""
        self._stepper, self._pool, self._client = stepper, pool, client
        self._flight: Flight | None = None

    @property
    def in_flight(self) -> bool:
        return self._flight is not None

    def drop(self) -> None:
        """The answer is not wanted any more. What the pool drafted of it is at hand there for the next draft."""
        self._flight = None

    def step(self, began: float) -> Lap:
        """began: when, before sequences were admitted."""
        stepper, flight, clock = self._stepper, self._flight, self._stepper.clock
        ready, other = halves(stepper.scheduler.decoding, flight.ids if flight else ())
        plan = realigned(flight.plan, flight.ids, [one.id for one in ready]) if flight else stepper.planned(ready)
        schedule = stepper.scheduler.schedule(ready, plan)
        other = [sequence for sequence in other if sequence.is_decoding]  # and not preempted
        coming = stepper.planned(other, Mode.LANES.value)
        planned = clock()
        drafts = self._take(schedule)
        round_id = flight.asked.request.round_id if flight else self._pool.round_id
        self._flight = self._ask(other, coming) if any(block and block.tokens for block in drafts.blocks) else None
        drafted = clock()
        picks = stepper.verify(schedule, drafts)
        marks = Marks(began, planned, drafted, clock())
        turn = stepper.commit(schedule, drafts, picks, marks)
        record = RoundRecord(
            round_id=round_id,
            mode=Mode.LANES,
            marks=marks,
            looked=planned,
            early=None,
            hinted=None,
            hits=(None,) * len(schedule.decoding),
            lengths=tuple(len(own) - 1 for own in picks[: len(schedule.decoding)]),
            num_committed=turn.stats.committed,
            num_prefill_tokens=turn.stats.num_prefill_tokens,
            waited=True,
            ended=clock(),
        )
        return Lap(turn, record, sum(map(bool, schedule.plan.lengths)), max(drafts.num_fed, default=0))

    def _take(self, schedule: Schedule) -> Drafts:
        """What came for the lane, as far as its rows are still there and pages reach; waits for it."""
        flight, pool = self._flight, self._pool
        if flight is None:
            return pool.draft(schedule.decoding, schedule.plan)
        drafts = pool.taken(flight.asked, schedule.decoding, self._client.answer())
        blocks = [
            pool.read(block, length) if block else None
            for block, length in zip(drafts.blocks, schedule.plan.lengths, strict=True)
        ]
        return replace(drafts, blocks=tuple(blocks), ahead=True)

    def _ask(self, lane: Sequence[Decoding], plan: Plan) -> Flight | None:
        asked = self._pool.ask(lane, plan) if any(plan.lengths) else None
        if asked is None:
            return None
        self._client.ask(asked.request)
        return Flight(tuple(sequence.id for sequence in lane), plan, asked)


def halves(decoding: Sequence[Decoding], ready: Collection[int]) -> tuple[list[Decoding], list[Decoding]]:
    """The lane that is verified now, and the other; both in the order of the batch. ready: drafts for these are coming.

    Whoever is new belongs to the other lane. Where that is larger by more than one, its newest go over, without drafts.
    """
    other = [sequence for sequence in decoding if sequence.id not in ready]
    num_moved = max(0, (2 * len(other) - len(decoding)) // 2)
    kept = {sequence.id for sequence in other[: len(other) - num_moved]}
    return (
        [sequence for sequence in decoding if sequence.id not in kept],
        [sequence for sequence in decoding if sequence.id in kept],
    )


def realigned(plan: Plan, before: Sequence[int], now: Sequence[int]) -> Plan:
    """The plan of a batch of these ids, for one of those: nothing for those that it does not know."""
    places = {sequence_id: index for index, sequence_id in enumerate(before)}
    rows = [places.get(sequence_id) for sequence_id in now]
    return replace(
        plan,
        lengths=tuple(0 if row is None else plan.lengths[row] for row in rows),
        own=tuple(None if row is None else plan.own[row] for row in rows) if plan.own else (),
        probes=tuple(index for index, row in enumerate(rows) if row in plan.probes),
    )
