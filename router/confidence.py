"""What a drafter's confidence is worth: the probability that the target picks the same token.

A power of it, one exponent per exit, moved a little up the gradient of the likelihood by every token whose fate is
known. A power keeps products: the probability that a whole draft survives is the power of the product of its
confidences, so a bound on the one is a bound on the other, and the pool can stop a draft without knowing the exponent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

SURE = 1 - 1e-6
UNSURE = 1e-6


@dataclass(slots=True)
class Calibration:
    """rate: the step in the exponent's logarithm per token, at first `first` over the number of tokens seen, if that is
    more. Exponents stay within `bounds`.
    """

    rate: float = 0.005
    first: float = 2.0
    bounds: tuple[float, float] = (0.05, 20.0)
    _powers: dict[int, float] = field(default_factory=dict)
    _seen: dict[int, int] = field(default_factory=dict)

    def power(self, exit_: int) -> float:
        return self._powers.get(exit_, 1.0)

    def floor(self, exit_: int, survival: float) -> float:
        """The product of confidences at which a draft survives with this probability."""
        return float(min(survival, 1.0) ** (1 / self.power(exit_))) if survival > 0 else 0.0

    def observe(self, exit_: int, confidences: Sequence[float], right: Sequence[bool]) -> None:
        """Tokens of one exit whose fate is known."""
        if not confidences:
            return
        power = self.power(exit_)
        sure = np.minimum(np.maximum(np.asarray(confidences, np.float64), UNSURE), SURE)
        logs = np.log(sure)
        survived = np.exp(power * logs)
        gradient = power * logs * np.where(np.asarray(right), 1.0, -survived / (1 - survived))
        slope = float(np.minimum(np.maximum(gradient, -3), 3).sum())
        if not math.isfinite(slope):  # a confidence that is not a number would be one for ever
            return
        seen = self._seen[exit_] = self._seen.get(exit_, 0) + len(confidences)
        step = max(self.rate, self.first / seen) * slope
        low, high = self.bounds
        self._powers[exit_] = min(max(power * math.exp(max(min(step, 0.3), -0.3)), low), high)


def worth(confidences: Iterable[float], least: float) -> int:
    """How many leading tokens have a product of confidences of at least this."""
    count, product = 0, 1.0
    for confidence in confidences:
        product *= confidence
        if product < least:
            break
        count += 1
    return count
