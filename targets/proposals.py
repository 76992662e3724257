"""What one pass verifies: a proposal for each decoding sequence, and where it came from."""

from __future__ import annotations

from dataclasses import dataclass, field

from protocol.plan import DepthRule
from protocol.record import Origin


@dataclass(frozen=True, slots=True)
class Proposal:
    """Tokens to be verified behind the committed ones of a sequence.

    rule, length: what it was drafted as; with fewer tokens than `length` the drafter stopped in doubt.
    """

    tokens: tuple[int, ...] = field(repr=False)
    exits: tuple[int, ...]
    confidences: tuple[float, ...]
    origin: Origin
    rule: DepthRule
    length: int

    def cut(self, count: int) -> Proposal:
        """At most its first `count` tokens, as if no more had been asked for."""
        return self._part(slice(count), self.origin, min(self.length, count))

    def rest(self, num_verified: int) -> Proposal:
        """What is left when its first tokens were accepted and the target picked the one behind them too."""
        return self._part(slice(num_verified + 1, None), Origin.REST, max(self.length - num_verified - 1, 0))

    def _part(self, part: slice, origin: Origin, length: int) -> Proposal:
        return Proposal(self.tokens[part], self.exits[part], self.confidences[part], origin, self.rule, length)


@dataclass(frozen=True, slots=True)
class Proposals:
    """The proposals of one round.

    rows: by decoding sequence, None where there is nothing to verify. num_fed: committed tokens that the pool had to
    run for each row before it could draft, at most: before a first draft the whole context.
    wait_ms: queued at the pool. answered: False where a draft was asked for in vain.
    """

    rows: tuple[Proposal | None, ...]
    num_fed: tuple[int, ...]
    wait_ms: float = 0.0
    answered: bool = True


def nothing(num_rows: int, answered: bool = True) -> Proposals:
    return Proposals((None,) * num_rows, (0,) * num_rows, answered=answered)
