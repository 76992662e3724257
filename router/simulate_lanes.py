"""A simulated target whose rounds are of several modes, lanes among them (targets/mirror.py, targets/lanes.py).

    whole    plan, draft, verify; what MirrorDrafting makes of it in the mode that router/mode_choice.py chose
    draft    in lanes: waits for the drafts of the ready lane, then asks for the other
    verify   the ready lane

A sequence alternates with its lane. Lanes begin where drafts came lately, and end where none come or none are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from protocol.outcome import RoundOutcome
from protocol.plan import Plan
from router.mode_choice import Modes
from router.modes import AHEAD, Mode, Round
from router.predict import SETTLED
from router.simulate_drafting import Drafts
from router.simulate_jobs import Decoding
from router.simulate_mirror import MirrorDrafting
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


class MirrorTarget(Target):
    """It has a link to its replica. modes: to choose from."""

    def __init__(self, *told: Any, modes: Sequence[Mode]) -> None:
        """told: as Target's."""
        super().__init__(*told)
        self._modes = Modes(modes)
        self._num_rows = 0
        self._flight: _Flight | None = None
        self._halved = False  # the round is one of half a batch
        self._drafted = False  # drafts came in the last round of the whole batch

    def _turn(self, decoding: list[Decoding]) -> Turn:
        self._num_rows = len(decoding)
        mode = self._modes.choose(len(decoding))
        self._halved = mode is Mode.LANES and (self._flight is not None or self._drafted)
        if isinstance(self._drafting, MirrorDrafting):
            whole = mode if mode in AHEAD else Mode.SERIAL
            self._drafting.mode = Mode.LANES if self._halved else whole
        if self._halved:
            return self._half(decoding)
        self._flight = None
        return Turn(decoding, self._plan(decoding, mode.value if mode in AHEAD else ""), self._chunks())

    def _half(self, decoding: list[Decoding]) -> Turn:
        flight = self._flight
        ready = halves(decoding, flight.decoding if flight else ())
        plan = _longer(flight.plan, len(ready)) if flight else self._plan(ready)
        return Turn(ready, plan, self._chunks())

    def _draft(self, turn: Turn) -> None:
        flight, self._flight = self._flight, None
        if flight is None or self._drafting is None:
            return super()._draft(turn)
        self._ask_for(turn)
        return flight.wait(lambda drafts: self._taken(turn, drafts))

    def _taken(self, turn: Turn, drafts: Drafts) -> None:
        drafts.extend(len(turn.decoding))
        drafts.ahead = True
        self._verify(turn, drafts)

    def _verify(self, turn: Turn, drafts: Drafts) -> None:
        came = any(block is not None and block.exits for block in drafts.blocks)
        self._drafted = came and not self._halved
        if came and self._halved:
            ready = set(map(id, turn.decoding))
            self._ask([one for one in self._running if one.generated and id(one) not in ready])
        super()._verify(turn, drafts)

    def _ask(self, lane: Sequence[Decoding]) -> None:
        plan = self._plan(lane, Mode.LANES.value)
        if any(plan.lengths) and self._drafting is not None:
            self._flight = _Flight(lane, plan)
            self._drafting.draft(lane, plan, self._flight.came)

    def _observe(self, outcome: RoundOutcome) -> None:
        super()._observe(outcome)
        catches_up = any(row.num_fed > SETTLED for row in outcome.rows)
        if any(outcome.plan.lengths) and not outcome.num_prefill_tokens and not catches_up:
            self._modes.observe(self._num_rows, self._played(outcome))

    def _played(self, outcome: RoundOutcome) -> Round:
        drafting = self._drafting
        ahead = drafting if isinstance(drafting, MirrorDrafting) else None
        in_turn_ms = None if self._halved else outcome.draft_ms
        return Round(
            mode=ahead.mode if ahead else Mode.LANES if self._halved else Mode.SERIAL,
            lengths=tuple(row.num_verified for row in outcome.rows),
            accepted=tuple(row.accepted for row in outcome.rows),
            ms=outcome.draft_ms + outcome.verify_ms + outcome.rest_ms,
            verify_ms=outcome.verify_ms,
            rest_ms=outcome.rest_ms,
            draft_ms=ahead.waited_ms if ahead else in_turn_ms,
            num_planned=sum(map(bool, outcome.plan.lengths)),
            num_hits=ahead.num_hits if ahead else 0,
        )


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
