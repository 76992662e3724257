"""What a policy may see of a batch, and what it decides.

A depth rule is a ladder of exits with a threshold before each next rung: a drafted token leaves at the
first exit whose confidence passes the threshold, and at the last one in any case (S2D section 3). A fixed
depth is a ladder of one rung, so the pool knows a single mechanism.
"""

from __future__ import annotations

from dataclasses import dataclass


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


@dataclass(frozen=True, slots=True)
class SequenceView:
    """remaining: tokens this sequence may still commit (max_tokens and context length both counted)."""

    num_tokens: int
    remaining: int


@dataclass(frozen=True, slots=True)
class BatchView:
    """The decoding sequences of one round, in row order; prefills are counted apart."""

    sequences: tuple[SequenceView, ...]
    num_prefilling: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """lengths: how many tokens to draft for each decoding sequence; 0 is plain decoding. depth: None if all are 0."""

    depth: DepthRule | None
    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.depth is None and any(self.lengths):
            raise ValueError(f"lengths {self.lengths} need a depth to draft at")
