"""A target's cost curves, read off once into arrays: a plan looks at hundreds of their cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocol.plan import DepthRule
from router.costs import CostCurves

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Tables:
    """The curves of one target, as arrays. length: of the longest draft; max_rows: of the largest batch."""

    curves: CostCurves
    rules: tuple[DepthRule, ...]
    length: int
    max_rows: int
    steps: tuple[Floats, ...]  # per rule: [max_rows + 1, length] ms of the token at a position, for so many rows
    overhead: tuple[float, ...]  # [max_rows + 1] ms by rows, and link likewise
    link: tuple[float, ...]
    widths: Floats  # tokens per row that passes are known of, and contexts
    contexts: Floats
    passes: Floats  # [max_rows + 1, widths, contexts] ms

    def verify(self, num_rows: int, context: float) -> tuple[Floats, Floats]:
        """Numbers of tokens in a pass and its ms, to interpolate between."""
        contexts, known = self.contexts, self.passes[num_rows]
        right = min(max(int(np.searchsorted(contexts, context)), 1), len(contexts) - 1)
        if right < 1:
            return num_rows * self.widths, known[:, 0]
        share = max((context - contexts[right - 1]) / (contexts[right] - contexts[right - 1]), 0.0)
        ms = known[:, right - 1] + share * (known[:, right] - known[:, right - 1])
        return num_rows * self.widths, np.maximum(ms, known[:, right]) if share > 1 else ms


def tables(curves: CostCurves, rules: Sequence[DepthRule], length: int, max_rows: int) -> Tables:
    """Raises ConfigError for curves without a drafter."""
    steps = tuple(_draft_steps(curves, rule, length, max_rows) for rule in rules)
    overhead = tuple(curves.overhead_ms(max(num_rows, 1)) for num_rows in range(max_rows + 1))
    link = tuple(curves.link_ms(max(num_rows, 1)) for num_rows in range(max_rows + 1))
    _, each, contexts = curves.target.verify.points
    widths = sorted({point for point in each if point < 1 + length} | {1.0, 1.0 + length})
    passes = [
        [[curves.verify_ms(max(n, 1), max(n, 1) * width, context) for context in contexts] for width in widths]
        for n in range(max_rows + 1)
    ]
    return Tables(
        curves,
        tuple(rules),
        length,
        max_rows,
        steps,
        overhead,
        link,
        np.asarray(widths),
        np.asarray(contexts),
        np.asarray(passes),
    )


def _draft_steps(curves: CostCurves, rule: DepthRule, length: int, max_rows: int) -> Floats:
    depth = sum(rule.exits) / len(rule.exits)
    table = np.zeros((max_rows + 1, length + 1))
    for num_rows in range(1, max_rows + 1):
        table[num_rows, 1:] = [curves.draft_ms(num_rows, depth, number) for number in range(1, length + 1)]
    return np.maximum(np.diff(table, axis=1), 0.0)
