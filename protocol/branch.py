"""Drafting ahead: while a target verifies a proposal, the pool drafts the one behind it.

    ahead     what is being verified, and how much may be drafted           target -> pool, as verification begins
    branches  of each sequence the next proposal, in parts                  pool -> target, as they are ready

A branch says what it was drafted behind by the hash of all tokens up to there, so it is usable exactly when the
committed tokens hash to its key (Mirror-SD section 3.1; SSD's speculation cache). It is a draft like any other: a wrong
one costs time and never changes text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from protocol.draft import DraftClient, DraftRow

EMPTY = 0xCBF29CE484222325  # FNV-1a, over token ids in place of bytes
_PRIME = 0x100000001B3
_MASK = (1 << 64) - 1


def prefix_hash(tokens: Iterable[int], before: int = EMPTY) -> int:
    """64 bits. before: of the tokens in front of these."""
    for token in tokens:
        before = (before ^ token) * _PRIME & _MASK
    return before


@dataclass(frozen=True, slots=True)
class AheadRow:
    """context: hands over the tokens committed since the last time; length 0. proposal: the tokens under verification,
    at positions context.base_length, ...; may be empty. length: tokens of the branch, which begins behind one more
    token that the pool guesses. stop_probability: as DraftRow's.
    """

    context: DraftRow
    proposal: tuple[int, ...] = field(repr=False)
    length: int
    stop_probability: float = 0.0


@dataclass(frozen=True, slots=True)
class AheadRequest:
    """depth: of all rows whose context names none."""

    incarnation: str
    round_id: int
    depth: int
    rows: tuple[AheadRow, ...]


@dataclass(frozen=True, slots=True)
class Branch:
    """tokens: a proposal at positions base_length, base_length + 1, ... key: the hash of all tokens before it. goes_on:
    it neither is as long as asked for nor stopped in doubt; more of it comes, as a longer one of the same key, unless
    pages or the drafter's window ended it. round_id: of the request that asked.
    """

    sequence_id: int
    base_length: int
    key: int
    tokens: tuple[int, ...] = field(repr=False)
    confidences: tuple[float, ...] = ()
    goes_on: bool = False
    round_id: int = 0


@dataclass(frozen=True, slots=True)
class BranchReply:
    """What one pass of the pool drafted; a round's branches come in several messages."""

    incarnation: str
    round_id: int
    branches: tuple[Branch, ...]


@runtime_checkable
class AheadClient(DraftClient, Protocol):
    """A target's way to a draft pool that works while the target does. Nothing here raises, and nothing but `draft`
    and `branches` waits.
    """

    def ahead(self, request: AheadRequest) -> None:
        """Hand over what is being verified."""

    def branches(self, timeout_s: float = 0.0) -> Sequence[Branch]:
        """What came since the last call; where nothing did, the first to come within timeout_s."""
