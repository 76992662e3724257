"""A simulated target in two lanes (targets/lanes.py): one half of the batch is drafted for while the other is verified.

    draft    waits for the drafts of the ready lane, then asks for the other
    verify   the ready lane

A sequence alternates with its lane. Where nothing is drafted, and for a single sequence, the batch is verified as one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from protocol.plan import Plan
from router.simulate_drafting import Drafts
from router.simulate_jobs import Decoding
from router.simulate_target import Target, Turn


class _Flight:
    """A lane whose drafts are on their way."""

    def __init__(self, decoding: Sequence[Decoding], plan: Plan) -> None:
        self.decoding = decoding
        self.plan = plan
        self._drafts: Drafts | None = None
        self._take: Callable[[Drafts], None] | None = None

    def came(self, drafts: Drafts) -> None:
        self._drafts = drafts
        self._meet()

    def wait(self, take: Callable[[Drafts], None]) -> None:
        self._take = take
        self._meet()

    def _meet(self) -> None:
        if self._drafts is not None and self._take is not None:
            self._take(self._drafts)


class LanesTarget(Target):
    """It has a link to its replica."""

    _flight: _Flight | None = None

    def _turn(self, decoding: list[Decoding]) -> Turn:
        flight = self._flight
        ready = halves(decoding, flight.decoding if flight else ()) if len(decoding) > 1 else decoding
        if flight is not None:
            return Turn(ready, _longer(flight.plan, len(ready)), self._chunks())
        plan = self._plan(ready)
        return Turn(ready, plan, self._chunks()) if any(plan.lengths) else super()._turn(decoding)

    def _draft(self, turn: Turn) -> None:
        flight, self._flight = self._flight, None
        if flight is None or self._drafting is None:
            return super()._draft(turn)
        self._ask_for(turn)
        return flight.wait(lambda drafts: self._verify(turn, drafts))

    def _verify(self, turn: Turn, drafts: Drafts) -> None:
        drafts.extend(len(turn.decoding))
        drafts.ahead = any(block is not None and block.exits for block in drafts.blocks)
        ready = set(map(id, turn.decoding))
        other = [one for one in self._running if one.generated and id(one) not in ready]
        if drafts.ahead and other:
            self._ask(other)
        super()._verify(turn, drafts)

    def _ask(self, lane: Sequence[Decoding]) -> None:
        plan = self._plan(lane)
        if any(plan.lengths) and self._drafting is not None:
            self._flight = _Flight(lane, plan)
            self._drafting.draft(lane, plan, self._flight.came)


def halves(decoding: Sequence[Decoding], ready: Sequence[Decoding]) -> list[Decoding]:
    """The lane that is verified now: those that drafts are coming for, and behind them, without, the newest of the
    others where these are more by two.
    """
    known = set(map(id, ready))
    other = [one for one in decoding if id(one) not in known]
    num_moved = max(0, (2 * len(other) - len(decoding)) // 2)
    return [*ready, *other[len(other) - num_moved :]]


def _longer(plan: Plan, num_rows: int) -> Plan:
    """Nothing for the rows behind those that it knows."""
    more = num_rows - len(plan.lengths)
    own = (*plan.own, *(None,) * more) if plan.own else ()
    return replace(plan, lengths=(*plan.lengths, *(0,) * more), own=own)
