"""What the last rounds spent their time on, as values: a trace is a picture of these."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from router.modes import Mode
from router.pipeline import Source
from targets.step import Marks, Turn

MAX_ROUNDS = 1024


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """Moments in seconds of the stepper's clock. mode: as it was played.

    looked: between marks.planned and marks.drafted, branches gathered and windows looked up; the rest of the way is
    the wait for fresh drafts. early, hinted: between marks.drafted and marks.verified, the early picks are there, and
    on their way; None in a pass without. hits: by decoding row what made its window, None where none was at hand.
    lengths: tokens of each that were verified. waited: fresh drafts were asked for, in lanes a round before.
    ended: all is committed.
    """

    round_id: int
    mode: Mode
    marks: Marks
    looked: float
    early: float | None
    hinted: float | None
    hits: tuple[Source | None, ...]
    lengths: tuple[int, ...]
    num_committed: int
    num_prefill_tokens: int
    waited: bool
    ended: float


@dataclass(frozen=True, slots=True)
class Lap:
    """One step and how it went. planned: the policy wanted drafts."""

    turn: Turn
    record: RoundRecord
    planned: bool


@dataclass(frozen=True, slots=True)
class Timeline:
    """The last rounds, oldest first. One thread adds; any may read."""

    _rounds: deque[RoundRecord] = field(default_factory=lambda: deque(maxlen=MAX_ROUNDS))

    def add(self, record: RoundRecord) -> None:
        self._rounds.append(record)

    def last(self, count: int = MAX_ROUNDS) -> tuple[RoundRecord, ...]:
        return tuple(self._rounds)[-count:] if count else ()
