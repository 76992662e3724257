"""A target's cost curves as tables, made once: a decision looks at hundreds of their cells."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from router.costs import CostCurves
from router.filters import Line

CATCH_UP = 256  # tokens that catching up is priced by


@dataclass(frozen=True, slots=True)
class Costs:
    """Milliseconds by number of rows, from 0 to the largest batch.

    exits: of the drafter, in layers, ascending. length: of the longest draft.
    verify[rows][context][n]: a pass with n drafted tokens for each row, over contexts.
    steps[rows][exit][n]: time to draft the next token behind n others, without the link. slopes: the part of it that
    grows with rows.
    catch_up[rows][exit]: one more unseen token of each row, in the layers between an exit and the one before.
    """

    exits: tuple[int, ...]
    length: int
    contexts: tuple[float, ...]
    verify: tuple[tuple[Line, ...], ...]
    steps: tuple[tuple[Line, ...], ...]
    slopes: tuple[tuple[Line, ...], ...]
    catch_up: tuple[Line, ...]
    link: Line
    rest: Line

    def rows(self, num_rows: int) -> int:
        """The index of this number of rows; larger batches take the last."""
        return min(num_rows, len(self.rest) - 1)

    def size(self, num_rows: int) -> int:
        """The number of this size of batch: 1, 2, 3 to 4, 5 to 8 and so on."""
        return (self.rows(num_rows) - 1).bit_length()

    def passes(self, num_rows: int, context: float) -> Line:
        """[1 + length]: a pass, by drafted tokens of each row."""
        known, contexts = self.verify[self.rows(num_rows)], self.contexts
        if len(contexts) == 1:
            return known[0]
        right = min(max(bisect_left(contexts, context), 1), len(contexts) - 1)
        left = contexts[right - 1]
        share = max((context - left) / (contexts[right] - left), 0.0)
        return tuple([low + share * (high - low) for low, high in zip(known[right - 1], known[right], strict=True)])

    def verify_ms(self, num_rows: int, num_tokens: float, context: float) -> float:
        passes, width = self.passes(num_rows, context), min(num_tokens / num_rows - 1, self.length)
        low = min(int(width), self.length - 1)
        return passes[low] + (width - low) * (passes[low + 1] - passes[low])

    def draft_ms(self, exit_: int, lengths: Sequence[int]) -> float:
        """Of drafts of these lengths: at each place only the rows whose draft gets there."""
        total, there = 0.0, len(lengths)
        ends = [0] * (self.length + 1)
        for length in lengths:
            ends[min(length, self.length)] += 1
        for place in range(self.length):
            there -= ends[place]
            if not there:
                break
            total += self.steps[self.rows(there)][exit_][place]
        return total

    def token_ms(
        self, exit_: int, num_drafting: int, num_rows: int, drafted: int, context: float
    ) -> tuple[float, float]:
        """What one more drafted token of a row adds behind so many, to its drafting step and to the pass.

        A pass grows in steps as wide as its kernels, so the next token may cost more or less than the mean of all.
        """
        rows = self.rows(num_drafting)
        passes = self.passes(num_rows, context)
        return self.slopes[rows][exit_][drafted] / rows, (passes[drafted + 1] - passes[drafted]) / num_rows


def tables(curves: CostCurves, exits: Sequence[int], length: int, max_rows: int) -> Costs:
    """Raises ConfigError for curves without a drafter."""
    rows, lengths, contexts = range(max_rows + 1), range(length + 1), curves.target.verify.points[2]
    passes = [
        [[curves.verify_ms(max(n, 1), max(n, 1) * (1 + each), context) for each in lengths] for context in contexts]
        for n in rows
    ]
    drafts = [[[curves.draft_ms(n, exit_, each) if n else 0.0 for each in lengths] for exit_ in exits] for n in rows]
    steps = np.maximum(np.diff(np.asarray(drafts)), 0.0)
    sizes = np.maximum(np.arange(max_rows + 1.0), 1.0)
    slopes = (steps - steps[np.arange(max_rows + 1) // 2]) * (sizes / np.ceil(sizes / 2))[:, None, None]
    ends = [[curves.catch_up_ms(max(n, 1), exit_, CATCH_UP) / CATCH_UP for exit_ in exits] for n in rows]
    return Costs(
        tuple(exits),
        length,
        tuple(contexts),
        _frozen(passes),
        _frozen(steps.tolist()),
        _frozen(np.clip(slopes, 0.0, steps).tolist()),
        tuple(map(tuple, np.maximum(np.diff(np.asarray(ends), axis=1, prepend=0.0), 0.0).tolist())),
        tuple(curves.link_ms(max(n, 1)) for n in rows),
        tuple(curves.overhead_ms(max(n, 1)) for n in rows),
    )


def _frozen(table: list[list[list[float]]]) -> tuple[tuple[Line, ...], ...]:
    return tuple(tuple(map(tuple, lines)) for lines in table)
