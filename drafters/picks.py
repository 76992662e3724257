"""The input and the output of a pass of the drafter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from protocol.request import SamplingParams


@dataclass(frozen=True, slots=True)
class PassRow:
    """One sequence's part of a pass.

    tokens: the tokens at positions [written, length), `written` being `NestedDrafter.written(sequence)`. All positions
        below length go down to `depth`.
    ahead: how many tokens from position `length` on may be drafted: one, more if the pass can go on by itself, none for
        a row that only reads. All but the last have pages.
    stop_probability: the draft ends with the token at which the product of the confidences falls to this.
    """

    sequence: int
    tokens: Sequence[int] = field(repr=False)
    length: int
    depth: int
    sampling: SamplingParams
    ahead: int = 1
    stop_probability: float = 0.0

    @property
    def drafts(self) -> bool:
        return self.ahead > 0


@dataclass(frozen=True, slots=True)
class Pick:
    """A drafted token."""

    token: int = field(repr=False)
    confidence: float
