"""Turns the times of single passes into a curve.

A sweep times each pass once. Sweeps are repeated, every other one backwards, so that a machine that slows down affects
all passes alike, and widths follow each other as in a real run. The first sweep warms up.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise, product
from statistics import median

from tqdm import tqdm

from deployments.progress import BAR_AFTER_S
from router.costs import Curve

MAX_HELD_BACK = 12

Cell = tuple[int, ...]
Points = tuple[tuple[int, ...], ...]
Run = Callable[[Cell], float]  # milliseconds of one pass


def sweep(run: Run, axes: tuple[str, ...], points: Points, repeat: int, label: str) -> Curve:
    """The curve over the grid of these points."""
    return _curve(axes, points, measure_interleaved(run, list(product(*points)), repeat, label))


def checked_sweep(
    run: Run, axes: tuple[str, ...], points: Points, between: Points, repeat: int, label: str
) -> tuple[Curve, float]:
    """The curve, and its median relative error for some passes between the points, which are held back from it."""
    on = list(product(*points))
    off = held_back(between, min(max(len(on) // 6, 3), MAX_HELD_BACK))
    ms = measure_interleaved(run, [*on, *off], repeat, label)
    curve = _curve(axes, points, ms[: len(on)])
    return curve, median_error(curve, off, ms[len(on) :])


def _curve(axes: tuple[str, ...], points: Points, ms: Sequence[float]) -> Curve:
    return Curve(axes, tuple(tuple(map(float, axis)) for axis in points), tuple(ms))


def measure_interleaved(run: Run, cells: Sequence[Cell], repeat: int, label: str) -> list[float]:
    """Milliseconds of each cell. Takes the lower quartile of repetitions, because other load only adds time."""
    times: list[list[float]] = [[] for _ in cells]
    order = range(len(cells))
    total = (repeat + 1) * len(cells)
    with tqdm(total=total, desc=label, unit="pass", delay=BAR_AFTER_S, leave=False, disable=None) as bar:
        for turn in range(repeat + 1):
            for index in order if turn % 2 else reversed(order):
                ms = run(cells[index])
                if turn:
                    times[index].append(ms)
                bar.update()
    return [round(sorted(repeats)[len(repeats) // 4], 5) for repeats in times]


def midpoints(points: Sequence[int]) -> tuple[int, ...]:
    """The integers halfway between neighbouring points; the last point if no neighbours have one between them."""
    return tuple((a + b) // 2 for a, b in pairwise(points) if b - a > 1) or (points[-1],)


def held_back(middle: Points, number: int) -> list[Cell]:
    """A fixed sample of the cells between the points of a grid."""
    cells = list(product(*middle))
    return random.Random(0).sample(cells, min(number, len(cells)))


def thin(axes: Points, coarse: bool) -> Points:
    """All points, or, if coarse, every other point of each axis and the last."""
    return tuple((*points[:-1:2], points[-1]) for points in axes) if coarse else axes


def median_error(curve: Curve, cells: Sequence[Cell], ms: Sequence[float]) -> float:
    """The median relative error of the curve for these cells."""
    return median(abs(curve.at(*cell) / max(real, 1e-9) - 1) for cell, real in zip(cells, ms, strict=True))
