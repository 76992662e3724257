"""What passes take in virtual time: the profiled curves, each cell of which is read once.

A pass of the pool is priced layer group by layer group, a group being the layers between two exits: rows that leave early
take no part in the later ones. For rows that all leave at one exit the groups add up to that exit's curve.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from router.costs import CostCurves


class Line:
    """One axis of a curve, the others fixed: between the points on the chord, beyond the last on its slope unless that
    falls.
    """

    def __init__(self, points: Sequence[float], ms: Sequence[float]) -> None:
        self._points, self._ms = points, ms

    def at(self, x: float) -> float:
        points, ms = self._points, self._ms
        if x <= points[0] or len(points) == 1:
            return ms[0]
        low = min(bisect_right(points, x) - 1, len(points) - 2)
        here = ms[low] + (ms[low + 1] - ms[low]) * (x - points[low]) / (points[low + 1] - points[low])
        return here if x <= points[-1] else max(here, ms[-1])


class TargetTimes:
    """Of one target, in ms."""

    def __init__(self, curves: CostCurves) -> None:
        self._curves = curves
        self._verify: dict[tuple[int, int], Line] = {}
        self._overhead: dict[int, float] = {}
        self._prompt, self._fixed_ms = _prompt_line(curves)

    def pass_ms(self, num_rows: int, num_tokens: int, context: float, chunks: Sequence[tuple[int, int]]) -> float:
        """num_rows, num_tokens, context: of what is verified. chunks: of prompts, each [start, stop)."""
        if not num_rows:
            return (self._fixed_ms if chunks else 0.0) + self._chunks_ms(chunks)
        line = self._verify.get((num_rows, num_tokens))
        if line is None:
            contexts = self._curves.target.verify.points[2]
            ms = [self._curves.verify_ms(num_rows, num_tokens, at) for at in contexts]
            line = self._verify[num_rows, num_tokens] = Line(contexts, ms)
        return line.at(context) + self._chunks_ms(chunks)

    def overhead_ms(self, num_rows: int) -> float:
        if num_rows not in self._overhead:
            self._overhead[num_rows] = self._curves.overhead_ms(max(num_rows, 1))
        return self._overhead[num_rows]

    def _chunks_ms(self, chunks: Sequence[tuple[int, int]]) -> float:
        return sum(max(self._prompt.at(stop) - self._prompt.at(start), 0.0) for start, stop in chunks)


def _prompt_line(curves: CostCurves) -> tuple[Line, float]:
    """What the first tokens of a prompt cost, 0 for none, and what a pass costs for being one."""
    points, ms = curves.target.prefill.points[0], curves.target.prefill.ms
    if len(points) == 1:
        return Line((0.0, points[0]), (0.0, ms[0])), 0.0
    slope = (ms[1] - ms[0]) / (points[1] - points[0])
    fixed = min(max(ms[0] - slope * points[0], 0.0), ms[0])
    return Line((0.0, *points), (0.0, *(each - fixed for each in ms))), fixed


@dataclass(slots=True)
class PoolTimes:
    """Of the pool's passes, in ms. exits: ascending. slower: of a replica on other hardware, times as long."""

    curves: CostCurves
    exits: Sequence[int]
    slower: float = 1.0
    _lines: dict[tuple[int, int], tuple[Line, float]] = field(default_factory=dict)

    def group_ms(self, start: int, stop: int, num_rows: int, num_positions: int, first: bool) -> float:
        """Layers [start, stop) over these. first: of the pass; its later tokens cost less."""
        upper = self._deep_ms(start, num_rows, num_positions, first) if start else 0.0
        return self.slower * max(self._deep_ms(stop, num_rows, num_positions, first) - upper, 0.0)

    def link_ms(self, num_rows: int) -> float:
        """There and back."""
        return self.curves.link_ms(num_rows)

    def _deep_ms(self, depth: int, num_rows: int, num_positions: int, first: bool) -> float:
        """From the embedding to an exit."""
        key = (depth, num_rows)
        if key not in self._lines:
            self._lines[key] = self._read(*key)
        line, later = self._lines[key]
        ms = line.at(num_positions / num_rows)
        return ms if first else later + ms - line.at(1.0)

    def _read(self, depth: int, num_rows: int) -> tuple[Line, float]:
        """The first token over what each row feeds, and a later token."""
        curves = self.curves
        news = curves.drafter.draft.points[2] if curves.drafter else (1.0,)
        line = Line(news, [curves.draft_ms(num_rows, depth, 1, new) for new in news])
        return line, curves.draft_ms(num_rows, depth, 2) - curves.draft_ms(num_rows, depth, 1)
