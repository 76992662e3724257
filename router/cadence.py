"""When to learn: at once where text surprises, else the rarer the longer nothing has changed.

Learning costs one or two milliseconds, several times what it takes with warm caches, because every pass of a target
sweeps them; beside rounds of a few milliseconds that must be rare. What a round accepts is a sum that costs nothing, so
every round is held against those before it:

    surprised   |fast - slow| > ALARM standard deviations, of means of accepted tokens a row over few and many rounds
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from protocol.outcome import RoundOutcome

FAST, SLOW = 0.15, 0.02  # of a new round in the means
ALARM = 2.5
ENOUGH = 16  # rounds before anything surprises
LEAST, LEAST_SLOW = 5, 2  # rounds between digests
SLOW_MS = 25.0  # of a round beside which a decision costs next to nothing
PAUSE_MS = 8.0  # between digests at least, for each row: they cost some hundredths of that
LONGEST_MS = 100.0  # and at most, at first
CALM, DOUBLINGS = 3, 2  # digests in a row that changed nothing, after which the pause is twice as long; so many times


@dataclass(slots=True)
class Cadence:
    """every: rounds of a lone sequence between digests at least; fewer where more rows tell of each."""

    every: int
    num_rounds: int = 0  # since the last digest
    passed_ms: float = 0.0
    is_slow: bool = False  # rounds took long, when last looked at
    calm: int = 0  # digests in a row that changed nothing
    _fast: float = 0.0
    _slow: float = 0.0
    _variance: float = 0.0
    _seen: int = 0

    def observe(self, outcome: RoundOutcome) -> None:
        self.num_rounds += 1
        self.passed_ms += outcome.draft_ms + outcome.verify_ms + outcome.rest_ms
        accepted = [row.accepted for row in outcome.rows if row.exits]
        if accepted:
            self._follow(sum(accepted) / len(accepted))

    def is_due(self, num_rows: int, trial: bool = False) -> bool:
        """Whether enough has happened to learn from, and enough time passed for learning to cost little of it.

        trial: what is played is dear if it is in vain, so it is judged as soon as there is enough to judge by.
        """
        least = LEAST_SLOW if self.is_slow else LEAST
        rounds = max(min(self.every, least), self.every / num_rows)
        if self.num_rounds < rounds:
            return False
        if trial or self.is_surprised:
            return True
        calm = 1 if self.is_slow else 1 << min(self.calm // CALM, DOUBLINGS)
        return self.num_rounds >= calm * rounds and self.passed_ms >= calm * min(PAUSE_MS * num_rows, LONGEST_MS)

    @property
    def is_rare(self) -> bool:
        """Whether digests are so far apart that a decision after each costs next to nothing."""
        return self.is_slow or self.calm >= CALM

    @property
    def is_surprised(self) -> bool:
        """Whether text has become easier or harder. A mean that moves by FAST has FAST / (2 - FAST) of the variance."""
        if self._seen < ENOUGH:
            return False
        return abs(self._fast - self._slow) > ALARM * math.sqrt(FAST / (2 - FAST) * self._variance)

    def digested(self, changed: bool) -> None:
        """changed: what is played, or what is known of the text."""
        self.is_slow = self.passed_ms > SLOW_MS * self.num_rounds
        self.num_rounds, self.passed_ms = 0, 0.0
        self.calm = 0 if changed or self.is_surprised else self.calm + 1
        if self.calm == 0:
            self._seen = 0

    def _follow(self, accepted: float) -> None:
        if self._seen == 0:
            self._fast = self._slow = accepted
            self._variance = 0.0
        self._seen += 1
        difference = accepted - self._slow
        share = max(SLOW, 1 / self._seen)
        self._fast += max(FAST, 1 / self._seen) * (accepted - self._fast)
        self._slow += share * difference
        self._variance += share * (difference * (accepted - self._slow) - self._variance)
