"""What reads the records of a target's rounds: totals, the worth of confidences, and the last ones for a trace.

A round takes a millisecond or few, so records are counted many at a time.
"""

from __future__ import annotations

from collections import deque

from protocol.limits import MAX_ROUNDS
from protocol.record import RoundRecord
from protocol.stats import RoundStats
from targets.confidence import Calibration
from targets.fence import Fence

ENOUGH = 16  # tokens that confidence is calibrated by at a time
UNCOUNTED = 64  # records, at most


class Rounds:
    """One thread adds; any may read `totals` and `last`. A failure to read a record goes no further than a log line."""

    def __init__(self) -> None:
        self.num_steps = 0
        self._counted: tuple[RoundStats, list[RoundRecord]] = RoundStats(), []  # and records that are yet to be counted
        self.calibration = Calibration()
        self._fences: list[Fence] = []
        self._fence = self.fence("record of rounds")
        self._last: deque[RoundRecord] = deque(maxlen=MAX_ROUNDS)
        self._waiting: dict[int, tuple[list[float], list[bool]]] = {}  # by exit: confidences, and whether right

    def fence(self, part: str) -> Fence:
        """Around a part that may fail, for numbers of these rounds."""
        self._fences.append(Fence(part, lambda: self.num_steps))
        return self._fences[-1]

    @property
    def num_failures(self) -> int:
        return sum(fence.num_failures for fence in self._fences)

    def add(self, record: RoundRecord) -> None:
        self._fence.attempt(lambda: self._count(record), None, always=True)
        self._fence.attempt(lambda: self._calibrate(record), None)
        self.num_steps += 1

    def last(self, count: int = MAX_ROUNDS) -> tuple[RoundRecord, ...]:
        """Oldest first."""
        return tuple(self._last)[-count:] if count else ()

    @property
    def totals(self) -> RoundStats:
        totals, records = self._counted
        return totals.plus(list(records))

    def _count(self, record: RoundRecord) -> None:
        self._last.append(record)
        totals, records = self._counted
        records.append(record)
        if len(records) >= UNCOUNTED:
            counted = self._fence.attempt(lambda: totals.plus(records), totals, always=True)
            self._counted = counted, []  # what cannot be counted is left out, once

    def _calibrate(self, record: RoundRecord) -> None:
        """Learns from tokens up to the first refused one."""
        for row in record.rows:
            if row.depth is None:
                continue
            count = row.num_tried
            sure, right = self._waiting.setdefault(row.depth, ([], []))
            sure += row.confidences[:count]
            right += [index < row.num_right for index in range(count)]
            if len(sure) >= ENOUGH:
                del self._waiting[row.depth]
                self.calibration = self.calibration.learned(row.depth, sure, right)
