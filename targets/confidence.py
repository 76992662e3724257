"""What a drafter's confidence is worth: the probability that a token is right is a power of it, one exponent per exit.

A power keeps products: the probability that a whole draft is right is the power of the product of its confidences, so
the pool can end a draft by a bound on that product without knowing the exponent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

STEP, FIRST = 0.005, 2.0  # of the log exponent per token; while few tokens were seen, FIRST over their number
MIN_EXPONENT, MAX_EXPONENT = 0.05, 20.0
NEVER_SURE = 1e-6


@dataclass(frozen=True, slots=True)
class Calibration:
    """powers: the exponent of each exit. seen: tokens that told of it."""

    powers: dict[int, float] = field(default_factory=dict)
    seen: dict[int, int] = field(default_factory=dict)

    def power(self, exit_: int) -> float:
        return self.powers.get(exit_, 1.0)

    def learned(self, exit_: int, confidences: Sequence[float], right: Sequence[bool]) -> Calibration:
        """Learns from tokens of one exit: one step up the gradient of their likelihood."""
        power = self.power(exit_)
        logs = np.log(np.minimum(np.maximum(np.asarray(confidences, np.float64), NEVER_SURE), 1 - NEVER_SURE))
        survived = np.exp(power * logs)
        gradient = power * logs * np.where(np.asarray(right), 1.0, -survived / (1 - survived))
        slope = float(np.minimum(np.maximum(gradient, -3), 3).sum())
        if not math.isfinite(slope):  # a confidence that is not a number would spoil the exponent for ever
            return self
        seen = self.seen.get(exit_, 0) + len(confidences)
        step = min(max(max(STEP, FIRST / seen) * slope, -0.3), 0.3)
        power = min(max(power * math.exp(step), MIN_EXPONENT), MAX_EXPONENT)
        return Calibration(self.powers | {exit_: power}, self.seen | {exit_: seen})
