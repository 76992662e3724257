"""The input and the output of a pass of the drafter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from protocol.plan import DepthRule
from protocol.request import SamplingParams


@dataclass(frozen=True, slots=True)
class PassRow:
    """One sequence's part of a pass.

    tokens: the tokens at positions [written, length), `written` being `NestedDrafter.written(sequence)`.
    settled: positions below it go to the rule's last exit. When length exceeds it, the token at position
        `length` is drafted, and position length - 1 goes only as deep as that takes.
    ahead: how many tokens may be drafted if the pass can go on by itself; all but the last have pages.
    stop_probability: the draft ends with the token at which the product of the confidences falls to this.
    """

    sequence: int
    tokens: Sequence[int] = field(repr=False)
    length: int
    settled: int
    depth: DepthRule
    sampling: SamplingParams
    ahead: int = 1
    stop_probability: float = 0.0

    @property
    def drafts(self) -> bool:
        return self.length > self.settled


@dataclass(frozen=True, slots=True)
class Pick:
    """A drafted token."""

    token: int = field(repr=False)
    exit: int
    confidence: float
