"""What one pass verifies: a proposal for each decoding sequence, and where it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from protocol.record import Origin
from targets.sequence import Sequence as Decoding


@dataclass(frozen=True, slots=True)
class Proposal:
    """Tokens to be verified behind the committed ones of a sequence.

    depth, length: as it was drafted; with fewer tokens than `length` the drafter stopped in doubt. None and 0: not.
    num_forced: its last tokens, which the grammar of the text leaves no choice about; they have no confidence.
    """

    tokens: tuple[int, ...] = field(repr=False)
    confidences: tuple[float, ...]
    origin: Origin
    depth: int | None
    length: int
    num_forced: int = 0

    def cut(self, count: int) -> Proposal:
        """At most its first `count` tokens, as if no more had been asked for."""
        return self._part(slice(count), self.origin, min(self.length, count))

    def rest(self, num_verified: int) -> Proposal:
        """What is left when its first tokens were accepted and the target picked the one behind them too."""
        return self._part(slice(num_verified + 1, None), Origin.AHEAD, max(self.length - num_verified - 1, 0))

    def _part(self, part: slice, origin: Origin, length: int) -> Proposal:
        return Proposal(self.tokens[part], self.confidences[part], origin, self.depth, length)


@dataclass(frozen=True, slots=True)
class Proposals:
    """The proposals of one round.

    rows: by decoding sequence, None where there is nothing to verify. num_fed: committed tokens that the pool had to
    run for each row before it could draft, at most: before a first draft the whole context.
    wait_ms: time in the pool's queue. answered: False if drafts were asked for and none came.
    """

    rows: tuple[Proposal | None, ...]
    num_fed: tuple[int, ...]
    wait_ms: float = 0.0
    answered: bool = True


def mended(proposals: Proposals, decoding: Sequence[Decoding], rooms: Sequence[int]) -> Proposals:
    """The proposals up to the first token that a grammar refuses, and behind that the tokens that it forces."""
    if all(sequence.constraint is None for sequence in decoding):
        return proposals
    return replace(proposals, rows=tuple(map(_mended, proposals.rows, decoding, rooms)))


def _mended(proposal: Proposal | None, sequence: Decoding, room: int) -> Proposal | None:
    if sequence.constraint is None:
        return proposal
    drafted = proposal.tokens if proposal else ()
    tokens, num_kept = sequence.constraint.mended(sequence.tokens[sequence.num_prompt :], drafted, room)
    num_forced = len(tokens) - num_kept
    if proposal is None or not num_kept:
        return Proposal(tokens, (), Origin.FORCED, None, 0, num_forced) if num_forced else None
    kept = proposal if num_kept == len(drafted) else proposal.cut(num_kept)
    return replace(kept, tokens=tokens, num_forced=num_forced)


def nothing(num_rows: int, answered: bool = True) -> Proposals:
    return Proposals((None,) * num_rows, (0,) * num_rows, answered=answered)
