"""What the last rounds spent their time on, as values: a trace is a picture of these."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from protocol.limits import MAX_ROUNDS
from router.modes import Mode, Round
from router.pipeline import Source
from router.predict import SETTLED
from targets.step import Marks, Turn


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
    """One step and how it went. num_planned: rows that the policy wanted drafts for. num_fed: tokens of a context that
    the pool was handed, at most.
    """

    turn: Turn
    record: RoundRecord
    num_planned: int
    num_fed: int

    @property
    def played(self) -> Round | None:
        """What it tells of its mode; None where nothing was wanted, a prompt rode along, or the pool caught up."""
        record, marks = self.record, self.record.marks
        if not self.num_planned or record.num_prefill_tokens or self.num_fed > SETTLED:
            return None
        waited = record.waited and record.mode is not Mode.LANES
        runs = self.turn.runs[: len(record.lengths)]
        return Round(
            mode=record.mode,
            lengths=record.lengths,
            accepted=tuple(min(max(len(run.token_ids) - 1, 0), k) for run, k in zip(runs, record.lengths, strict=True)),
            ms=1e3 * (record.ended - marks.began),
            verify_ms=1e3 * (marks.verified - marks.drafted),
            rest_ms=1e3 * (marks.planned - marks.began + record.ended - marks.verified),
            draft_ms=1e3 * (marks.drafted - record.looked) if waited else None,
            num_planned=self.num_planned,
            num_hits=sum(source is not None for source in record.hits),
        )


@dataclass(frozen=True, slots=True)
class Timeline:
    """The last rounds, oldest first. One thread adds; any may read."""

    _rounds: deque[RoundRecord] = field(default_factory=lambda: deque(maxlen=MAX_ROUNDS))

    def add(self, record: RoundRecord) -> None:
        self._rounds.append(record)

    def last(self, count: int = MAX_ROUNDS) -> tuple[RoundRecord, ...]:
        return tuple(self._rounds)[-count:] if count else ()
