"""Cost curves as a simulation reads them: millions of times, so every cell is read off the curves once.

A pass of the pool is priced layer group by layer group, a group being the layers between two exits: rows that leave
early take no part in the later ones, and positions that an earlier draft left at a shallow exit are made up for where a
deeper one needs them. For rows that all leave at one exit the groups add up to that exit's curve.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

from router.costs import CostCurves


class Line:
    """One axis of a curve, the others fixed: between the points on the chord, beyond the last on its slope unless that
    falls.
    """

    __slots__ = ("_ms", "_points")

    def __init__(self, points: Sequence[float], ms: Sequence[float]) -> None:
        self._points = points
        self._ms = ms

    def at(self, x: float) -> float:
        points, ms = self._points, self._ms
        if x <= points[0] or len(points) == 1:
            return ms[0]
        low = min(bisect_right(points, x) - 1, len(points) - 2)
        here = ms[low] + (ms[low + 1] - ms[low]) * (x - points[low]) / (points[low + 1] - points[low])
        return here if x <= points[-1] else max(here, ms[-1])


class TargetTables:
    """Of one target's own passes, in ms."""

    def __init__(self, curves: CostCurves) -> None:
        self._curves = curves
        self._verify: dict[tuple[int, int], Line] = {}
        self._overhead: dict[int, float] = {}
        self._prompt, self.fixed_ms = prompt_line(curves)

    def verify_ms(self, num_rows: int, num_tokens: int, context: float) -> float:
        line = self._verify.get((num_rows, num_tokens))
        if line is None:
            contexts = self._curves.target.verify.points[2]
            ms = [self._curves.verify_ms(num_rows, num_tokens, at) for at in contexts]
            line = self._verify[num_rows, num_tokens] = Line(contexts, ms)
        return line.at(context)

    def chunk_ms(self, start: int, stop: int) -> float:
        """Prompt tokens [start, stop) on top of a pass that runs anyway; one that does not takes fixed_ms besides."""
        return max(self._prompt.at(stop) - self._prompt.at(start), 0.0)

    def overhead_ms(self, num_rows: int) -> float:
        if num_rows not in self._overhead:
            self._overhead[num_rows] = self._curves.overhead_ms(max(num_rows, 1))
        return self._overhead[num_rows]


def prompt_line(curves: CostCurves) -> tuple[Line, float]:
    """What the first tokens of a prompt cost, 0 for none, and what a pass costs for being one."""
    points, ms = curves.target.prefill.points[0], curves.target.prefill.ms
    if len(points) == 1:
        return Line((0.0, points[0]), (0.0, ms[0])), 0.0
    slope = (ms[1] - ms[0]) / (points[1] - points[0])
    fixed = min(max(ms[0] - slope * points[0], 0.0), ms[0])
    return Line((0.0, *points), (0.0, *(each - fixed for each in ms))), fixed


class PoolTables:
    """Of the pool's passes, in ms. exits: ascending; group number e is the layers that end at exit number e."""

    def __init__(self, curves: CostCurves, exits: Sequence[int]) -> None:
        """Raises ConfigError for curves without a drafter."""
        self._curves = curves
        self._exits = exits
        self._news = curves.drafter.draft.points[2] if curves.drafter else ()
        self._lines: dict[tuple[int, int], tuple[Line, float]] = {}
        self._cells: dict[tuple[bool, int, int, int], float] = {}
        self._links: dict[int, float] = {}
        curves.draft_ms(1, exits[0], 1)

    def step_ms(self, first: bool, num_rows: Sequence[int], num_positions: Sequence[int]) -> float:
        """One token of a pass. By group: the rows in it and the positions they run there. first: of the pass."""
        total = 0.0
        for group, rows in enumerate(num_rows):
            if rows:
                key = (first, group, rows, num_positions[group])
                ms = self._cells.get(key)
                if ms is None:
                    ms = self._cells[key] = self._group_ms(*key)
                total += ms
        return max(total, 0.0)

    def probe_ms(self, num_rows: int, num_positions: int) -> float:
        """All layers over committed tokens."""
        return self._deep_ms(True, len(self._exits) - 1, num_rows, num_positions)

    def link_ms(self, num_rows: int) -> float:
        """There and back."""
        if num_rows not in self._links:
            self._links[num_rows] = self._curves.link_ms(num_rows)
        return self._links[num_rows]

    def _group_ms(self, first: bool, group: int, num_rows: int, num_positions: int) -> float:
        before = self._deep_ms(first, group - 1, num_rows, num_positions) if group else 0.0
        return self._deep_ms(first, group, num_rows, num_positions) - before

    def _deep_ms(self, first: bool, exit_: int, num_rows: int, num_positions: int) -> float:
        """From the embedding to an exit."""
        key = (exit_, num_rows)
        if key not in self._lines:
            self._lines[key] = self._read(*key)
        line, later = self._lines[key]
        ms = line.at(num_positions / num_rows)
        return ms if first else later + ms - line.at(1.0)

    def _read(self, exit_: int, num_rows: int) -> tuple[Line, float]:
        """The first token over what each row feeds, and a later token."""
        draft: Callable[..., float] = self._curves.draft_ms
        depth = self._exits[exit_]
        line = Line(self._news, [draft(num_rows, depth, 1, new) for new in self._news])
        return line, draft(num_rows, depth, 2) - draft(num_rows, depth, 1)
