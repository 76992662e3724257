"""Which size of a drafter's LM head makes the most tokens per second, and why.

A smaller head drafts a token sooner, but only tokens that it has a row for. The prediction is for rounds of a fixed
length at batch 1: so many drafted tokens, then one pass of the target over them and the token before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Head:
    """coverage: the share of the corpus's tokens that it has rows for. ms: of it alone, for a drafted token."""

    size: int
    coverage: float
    ms: float


@dataclass(frozen=True, slots=True)
class TrimCosts:
    """The measurements that the choice is made by. heads: smallest first. layers_ms: of a drafted token without the
    head.

    acceptance: of a drafted token with the whole head. verify_ms: of the target's passes over 1, 2, ... tokens.
    """

    heads: tuple[Head, ...]
    layers_ms: float
    acceptance: float
    verify_ms: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Prediction:
    """A head at the length of rounds that suits it best."""

    head: Head
    length: int
    tokens_per_s: float


def predict(costs: TrimCosts) -> list[Prediction]:
    """For each head its best length, at least 1, among those whose pass was measured."""
    return [fastest(_rounds(costs, head)) for head in costs.heads]


def fastest(predictions: Sequence[Prediction]) -> Prediction:
    """The fastest prediction; the first of equals, which is the smallest head or the shortest round."""
    return max(predictions, key=lambda prediction: prediction.tokens_per_s)


def _rounds(costs: TrimCosts, head: Head) -> list[Prediction]:
    return [Prediction(head, length, _speed(costs, head, length)) for length in range(1, len(costs.verify_ms))]


def _speed(costs: TrimCosts, head: Head, length: int) -> float:
    """Tokens per second. The k-th drafted token counts when it and all before it are accepted."""
    accepted = costs.acceptance * head.coverage
    tokens = sum(accepted**count for count in range(length + 1))
    return 1e3 * tokens / (length * (costs.layers_ms + head.ms) + costs.verify_ms[length])
