"""When to ask the pool what every exit would have picked, and of which sequence: within a share of the time.

Time that passes earns credit, probes spend what they really took. The pool tells of the tokens that came since it
first saw a sequence, so where it knows none a probe only shows it one, for the next probe to tell of.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from protocol.plan import SequenceView

FIRST = 3  # probes that are paid in advance
SAVED = 64  # probes that may be saved up for
FOLLOW = 0.3  # of a new cost in the estimate


@dataclass(slots=True)
class Probing:
    """share: of the time, 0 for none. tokens: that a probe must have to tell. cost_ms: of one, as measured."""

    share: float
    tokens: int
    cost_ms: float
    credit_ms: float = field(init=False)
    _reserved_ms: float = 0.0  # of probes that are on their way
    _told: dict[int, int] = field(default_factory=dict)  # by sequence: tokens that were told of, or before the first

    def __post_init__(self) -> None:
        self.credit_ms = FIRST * self.cost_ms if self.share else 0.0

    @property
    def affordable(self) -> bool:
        return self.share > 0 and self.credit_ms >= self.cost_ms

    def choose(self, sequences: Sequence[SequenceView]) -> tuple[int, ...]:
        """The row with the most to tell for its length, which is what settling it may cost; none without credit."""
        row = self._teller(sequences) if self.affordable else None
        if row is None:
            return ()
        self._told[sequences[row].id] = sequences[row].num_tokens
        self.credit_ms -= self.cost_ms
        self._reserved_ms += self.cost_ms
        return (row,)

    def earn(self, passed_ms: float) -> None:
        self.credit_ms = min(self.credit_ms + self.share * passed_ms, SAVED * self.cost_ms)

    def pay(self, cost_ms: float) -> None:
        """What a round with probes took beyond its drafts."""
        cost = max(cost_ms, 0.05 * self.cost_ms)
        self.credit_ms += self._reserved_ms - cost
        self._reserved_ms = 0.0
        self.cost_ms += FOLLOW * (cost - self.cost_ms)

    def keep(self, sequence_ids: Collection[int]) -> None:
        """Forget the sequences that are not among these."""
        self._told = {number: tokens for number, tokens in self._told.items() if number in sequence_ids}

    def _teller(self, sequences: Sequence[SequenceView]) -> int | None:
        able = [row for row, one in enumerate(sequences) if one.drafts]
        known = [row for row in able if sequences[row].num_unseen < sequences[row].num_tokens]
        if not known:
            return max(able, key=lambda row: sequences[row].remaining, default=None)
        fresh = {row: sequences[row].num_tokens - self._seen(sequences[row]) for row in known}
        row = max(known, key=lambda row: fresh[row] / sequences[row].num_tokens)
        return row if fresh[row] >= self.tokens else None

    def _seen(self, sequence: SequenceView) -> int:
        return self._told.setdefault(sequence.id, sequence.num_tokens)
