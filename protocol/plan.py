"""What a policy may see of a batch, and what it decides.

A depth rule is a ladder of exits with a threshold before each next rung: a drafted token leaves at the
first exit whose confidence passes the threshold, and at the last one in any case (S2D section 3). A fixed
depth is a ladder of one rung, so the pool knows a single mechanism.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

CASCADE_THRESHOLD = 0.5


class Mode(StrEnum):
    """How a round gets its proposals."""

    SERIAL = "serial"  # plan, draft, verify, one after the other
    AHEAD = "ahead"  # the pool drafts on while the target verifies


@dataclass(frozen=True, slots=True)
class DepthRule:
    """exits ascend, in layers; thresholds has one entry less, each in [0, 1], compared strictly."""

    exits: tuple[int, ...]
    thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.exits or list(self.exits) != sorted(set(self.exits)):
            raise ValueError(f"exits {self.exits} must ascend; give at least one")
        if len(self.thresholds) != len(self.exits) - 1:
            raise ValueError(f"{len(self.exits)} exits need {len(self.exits) - 1} thresholds, got {self.thresholds}")


def cascade(exits: Sequence[int], thresholds: Sequence[float] | None = None) -> DepthRule:
    """The ladder through these exits. thresholds: one before each next exit; None: CASCADE_THRESHOLD each."""
    given = (CASCADE_THRESHOLD,) * (len(exits) - 1) if thresholds is None else tuple(thresholds)
    return DepthRule(tuple(exits), given)


@dataclass(frozen=True, slots=True)
class Speculation:
    """What a request asks for itself, whatever its target's policy: a depth in layers and a length; length 0 is off."""

    depth: int
    length: int

    def __post_init__(self) -> None:
        if self.length and self.depth < 1:
            raise ValueError(f"depth {self.depth} is no number of layers; length 0 turns speculation off")


@dataclass(frozen=True, slots=True)
class SequenceView:
    """remaining: tokens this sequence may still commit (max_tokens and context length both counted).

    num_unseen: committed tokens that the pool has yet to be handed, the newest one included, and until the first draft
    those that it was handed at admission. drafts: whether the pool would be asked (not while it is too busy for the
    sequence, nor past the drafter's context).
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
    right with probability confidence ** exponent; 1 if missing.
    """

    sequences: tuple[SequenceView, ...]
    modes: tuple[Mode, ...] = (Mode.SERIAL,)
    exponents: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """lengths: how many tokens to draft for each decoding sequence; 0 is plain decoding. depth: None if all are 0.

    own: where a row drafts at another depth than the batch; empty when none does.
    stop_probability: a draft ends behind the token at which the product of its confidences is no longer above this
    (Kangaroo). mode: how the round gets its proposals; SERIAL, or one of the view's.
    """

    depth: DepthRule | None
    lengths: tuple[int, ...]
    own: tuple[DepthRule | None, ...] = ()
    stop_probability: float = 0.0
    mode: Mode = Mode.SERIAL

    def __post_init__(self) -> None:
        if self.depth is None and any(self.lengths):
            raise ValueError(f"lengths {self.lengths} need a depth to draft at")

    def rule(self, index: int) -> DepthRule | None:
        """The depth that a row drafts at."""
        return (self.own[index] if self.own else None) or self.depth
