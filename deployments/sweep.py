"""Turns the times of single passes into a curve.

A sweep times each pass once. Sweeps are repeated, every other one backwards, so that a machine that slows down affects
all passes alike, and widths follow each other as in a real run. The first sweep warms up. Some passes lie between the
points of the grid. They are held back from the curve, and the reported error is the curve's median error for them.
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


def sweep(
    run: Run, axes: tuple[str, ...], points: Points, repeat: int, label: str, between: Points | None = None
) -> tuple[Curve, float]:
    """Returns the curve over the grid of these points, and its median relative error.

    between: the points from which passes are held back; None: the midpoints of every axis.
    """
    on = list(product(*points))
    off = held_back(between or tuple(map(midpoints, points)), min(max(len(on) // 6, 3), MAX_HELD_BACK))
    ms = measure_interleaved(run, [*on, *off], repeat, label)
    curve = Curve(axes, tuple(tuple(map(float, axis)) for axis in points), tuple(ms[: len(on)]))
    return curve, median_error(curve, off, ms[len(on) :])


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
