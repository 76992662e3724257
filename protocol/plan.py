"""What a policy may see of a batch, and what it decides. A depth is an exit of the drafter, counted in layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Mode(StrEnum):
    """How a round gets its proposals."""

    IN_TURN = "in turn"  # plan, draft, verify, one after the other
    AHEAD = "ahead"  # the pool drafts on while the target verifies


@dataclass(frozen=True, slots=True)
class Speculation:
    """What a request asks for itself, whatever its target's policy: a depth and a length; length 0 is off."""

    depth: int
    length: int

    def __post_init__(self) -> None:
        if self.length and self.depth < 1:
            raise ValueError(f"depth {self.depth} is no number of layers; length 0 turns speculation off")


@dataclass(frozen=True, slots=True)
class SequenceView:
    """remaining: tokens this sequence may still commit (max_tokens and context length both counted).

    num_unseen: committed tokens that the pool has yet to be handed, the newest one included. A pool that works only as
    it is waited for has not seen those of admission either, until its first draft. drafts: whether the pool would be
    asked (not while it is too busy for the sequence, nor past the drafter's context).
    """

    num_tokens: int
    remaining: int
    num_unseen: int = 1
    drafts: bool = True
    asked: Speculation | None = None


@dataclass(frozen=True, slots=True)
class BatchView:
    """The decoding sequences of one round, in row order.

    modes: how the round may get its proposals, as the config and the pool client allow. exponents: by exit; a token is
    right with probability confidence ** exponent; 1 if missing. reads_meanwhile: the pool reads what it is handed while
    the target works.
    """

    sequences: tuple[SequenceView, ...]
    modes: tuple[Mode, ...] = (Mode.IN_TURN,)
    exponents: Mapping[int, float] = field(default_factory=dict)
    reads_meanwhile: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """lengths: how many tokens to draft for each decoding sequence; 0 is plain decoding. depth: None if all are 0.

    own: where a row drafts at another depth than the batch; empty when none does.
    stop_probability: a draft ends behind the token at which the product of its confidences is no longer above this
    (Kangaroo). mode: how the round gets its proposals; IN_TURN, or one of the view's.
    """

    depth: int | None
    lengths: tuple[int, ...]
    own: tuple[int | None, ...] = ()
    stop_probability: float = 0.0
    mode: Mode = Mode.IN_TURN

    def __post_init__(self) -> None:
        if self.depth is None and any(self.lengths):
            raise ValueError(f"lengths {self.lengths} need a depth to draft at")

    def depth_of(self, index: int) -> int | None:
        """The depth that a row drafts at."""
        return (self.own[index] if self.own else None) or self.depth
