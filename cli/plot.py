"""Plots curves in a terminal, with two logarithmic axes and one mark per series."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

MARKS = "●○▲△■□◆◇"
WIDTH, HEIGHT = 60, 14

Points = Sequence[tuple[float, float]]


def plot(title: str, series: Mapping[str, Points], x_name: str) -> str:
    """The plot as text. All values must be positive, and there must be no more series than marks."""
    xs, ys = ([math.log(point[axis]) for points in series.values() for point in points] for axis in (0, 1))
    grid = [[" "] * WIDTH for _ in range(HEIGHT)]
    for mark, points in zip(MARKS, series.values(), strict=False):
        for x, y in points:
            grid[_place(math.log(y), ys, HEIGHT)][_place(math.log(x), xs, WIDTH)] = mark
    top, bottom = f"{math.exp(max(ys)):.3g}", f"{math.exp(min(ys)):.3g}"
    edge = max(len(top), len(bottom))
    labels = [bottom, *[""] * (HEIGHT - 2), top]
    lines = [f"{label:>{edge}} ┤{''.join(row)}" for label, row in zip(labels, grid, strict=True)]
    left, right = f"{math.exp(min(xs)):.3g}", f"{math.exp(max(xs)):.3g}"
    axis = f"{left}{x_name:^{WIDTH - len(left) - len(right)}}{right}"
    legend = "  ".join(f"{mark} {name}" for mark, name in zip(MARKS, series, strict=False))
    return "\n".join([title, *reversed(lines), " " * edge + " └" + "─" * WIDTH, " " * (edge + 2) + axis, legend])


def _place(value: float, values: Sequence[float], size: int) -> int:
    low, high = min(values), max(values)
    return round((value - low) / (high - low) * (size - 1)) if high > low else 0
