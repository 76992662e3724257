"""A target's cost curves as arrays, made once: a decision looks at hundreds of their cells."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from router.costs import CostCurves

Floats = npt.NDArray[np.float64]

CATCH_UP = 256  # tokens that catching up is priced by


@dataclass(frozen=True, slots=True)
class Costs:
    """Milliseconds by number of rows, from 0 to the largest batch.

    exits: of the drafter, in layers, ascending. length: of the longest draft. places: 0 to length - 1.
    verify[rows, context, n]: a pass with n drafted tokens for each row, over contexts; widths: 0 to length.
    steps[rows, exit, n]: drafting the token behind n others, without the link; slopes: what of it grows with rows.
    catch_up[rows][exit]: one more unseen token of each row, for the layers between an exit and the one before.
    """

    exits: tuple[int, ...]
    length: int
    places: npt.NDArray[np.int64]
    widths: Floats
    contexts: tuple[float, ...]
    verify: Floats
    steps: Floats
    slopes: Floats
    catch_up: tuple[tuple[float, ...], ...]
    link: tuple[float, ...]
    rest: tuple[float, ...]

    def rows(self, num_rows: int) -> int:
        """The index of this number of rows; larger batches take the last."""
        return min(num_rows, len(self.rest) - 1)

    def passes(self, num_rows: int, context: float) -> Floats:
        """[1 + length]: a pass, by drafted tokens of each row."""
        known, contexts = self.verify[self.rows(num_rows)], self.contexts
        if len(contexts) == 1:
            only: Floats = known[0]
            return only
        right = min(max(bisect_left(contexts, context), 1), len(contexts) - 1)
        left = contexts[right - 1]
        share = max((context - left) / (contexts[right] - left), 0.0)
        passes: Floats = known[right - 1] + share * (known[right] - known[right - 1])
        return passes

    def size(self, num_rows: int) -> int:
        """The number of this size of batch: 1, 2, 3 to 4, 5 to 8 and so on."""
        return (self.rows(num_rows) - 1).bit_length()

    def verify_ms(self, num_rows: int, num_tokens: float, context: float) -> float:
        return float(np.interp(num_tokens / num_rows - 1, self.widths, self.passes(num_rows, context)))

    def draft_ms(self, exit_: int, lengths: Sequence[int]) -> float:
        """At each place only the rows whose draft gets there."""
        total, there = 0.0, len(lengths)
        ends = [0] * (self.length + 1)
        for length in lengths:
            ends[min(length, self.length)] += 1
        for place in range(self.length):
            there -= ends[place]
            if not there:
                break
            total += float(self.steps[self.rows(there), exit_, place])
        return total

    def token_ms(
        self, exit_: int, num_drafting: int, num_rows: int, drafted: int, context: float
    ) -> tuple[float, float]:
        """What one row's token behind so many adds: of a drafting step what grows with rows, and of the pass.

        A pass grows by steps of its kernels' width, so that the next token is not the mean of all.
        """
        rows = self.rows(num_drafting)
        step, passes = float(self.slopes[rows, exit_, drafted]), self.passes(num_rows, context)
        return step / rows, float(passes[drafted + 1] - passes[drafted]) / num_rows


def tables(curves: CostCurves, exits: Sequence[int], length: int, max_rows: int, linked: bool = True) -> Costs:
    """linked: drafts come over a link, whose time then counts. Raises ConfigError for curves without a drafter."""
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
        np.arange(length),
        np.arange(1.0 + length),
        tuple(contexts),
        np.asarray(passes),
        steps,
        np.clip(slopes, 0.0, steps),
        tuple(map(tuple, np.maximum(np.diff(np.asarray(ends), axis=1, prepend=0.0), 0.0).tolist())),
        tuple(curves.link_ms(max(n, 1)) if linked else 0.0 for n in rows),
        tuple(curves.overhead_ms(max(n, 1)) for n in rows),
    )
