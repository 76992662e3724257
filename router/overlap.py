"""What drafting ahead would bring, foretold: the law of router/law.py for every depth rule and length.

While a window is verified the pool drafts its own next token and the window behind it, which is at hand where all was
accepted and that token is the target's too. What other branches add, and what they cost, is known only from rounds;
they are worth having where they bring more, so this is about the least that is to be expected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocol.plan import DepthRule
from router.law import Law
from router.predict import Predictor

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Overlap:
    """tokens: expected of a round of the whole batch."""

    rule: DepthRule
    length: int
    tokens: float
    law: Law

    @property
    def goodput(self) -> float:
        """Tokens per second of the batch."""
        return 1e3 * self.tokens / self.law.mirror_ms


def overlaps(
    predictor: Predictor, hazards: Sequence[Floats], num_rows: int, context: float, room: int
) -> tuple[Overlap, ...]:
    """For a batch of sequences that are all alike: rule by rule the lengths 1 to `room`.

    hazards: for each rule, [length]: that a token is accepted, given that all before it were.
    """
    lengths = range(1, min(room, predictor.tables.length) + 1)
    return tuple(
        _overlap(predictor, rule, hazards[rule], num_rows, context, length)
        for rule in range(len(predictor.tables.rules))
        for length in lengths
    )


def _overlap(predictor: Predictor, rule: int, hazards: Floats, num_rows: int, context: float, length: int) -> Overlap:
    curves, depth = predictor.tables.curves, predictor.tables.rules[rule]
    mean_depth = sum(depth.exits) / len(depth.exits)
    accepted = np.cumprod(hazards[:length])
    next_is_ours = float(hazards[min(length, len(hazards) - 1)])
    link_ms = curves.link_ms(num_rows)
    law = Law(
        verify_ms=predictor.verify_ms(num_rows, num_rows * (1 + length), context),
        wait_ms=link_ms + predictor.draft_ms(rule, (length,) * num_rows),
        rest_ms=predictor.other_ms(num_rows, drafts=False),
        hits=float(accepted[-1]) * next_is_ours,
        ahead_ms=link_ms + curves.draft_ms(num_rows, mean_depth, 1 + length),
    )
    return Overlap(depth, length, num_rows * (1 + float(accepted.sum())), law)
