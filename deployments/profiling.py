"""Measures the cost of passes of a config's models.

A sweep times each pass once. Sweeps are repeated, every other one backwards, so that a machine that slows down affects
all passes alike, and widths follow each other as in a real run. The first sweep warms up. Some passes lie between the
points of the grid. They are held back from the curve, and the reported error is the curve's median error for them.

A starting replica without stored costs measures a coarse grid (every other point), which takes a second or two. Other
replicas start on the same cores at that time, so on a CPU it uses the thread's CPU time. With six times as many busy
processes as cores, two such measurements mostly agreed within 10 %; by wall-clock time, within 300 %.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise, product
from statistics import median

import torch
from tqdm import tqdm

from deployments.config import AppConfig, PoolConfig, TargetConfig
from deployments.config_replica import Placement
from deployments.placement import pool_of
from deployments.process import DTYPES, device_of, pin_process, pool_positions, target_positions
from deployments.profile_link import link_timer
from deployments.profile_store import find_or_measure, model_key
from deployments.progress import BAR_AFTER_S, loading
from drafters.nested import NestedDrafter, load_nested
from drafters.profile import LENGTHS, NUM_NEW, DraftRound, draft_timer, largest_batch
from drafters.worker import DraftWorker
from model.execution import Execution
from model.files import resolve
from router.costs import (
    DRAFT_AXES,
    PREFILL_AXES,
    ROW_AXES,
    VERIFY_AXES,
    CostCurves,
    Curve,
    DrafterCosts,
    ModelKey,
    TargetCosts,
    row_points,
)
from targets.model import TargetModel, load_target
from targets.profile import PassShape, VerifyAxes, overhead_ms, pass_timer, verify_axes

PREFILL_TOKENS = (16, 64, 256, 512)
MAX_HELD_BACK = 12
START_REPEAT, START_ROWS = 3, 16

Cell = tuple[int, ...]
Points = tuple[tuple[int, ...], ...]
Run = Callable[[Cell], float]  # milliseconds of one pass
Clock = Callable[[], float]  # seconds


def measure(config: AppConfig, repeat: int) -> list[CostCurves]:
    """Cost curves of every target, with the drafter's for targets that speculate."""
    drafters: dict[ModelKey, DrafterCosts] = {}  # several if colocated: the cost depends on the target's threads
    for target in config.targets:
        pool = pool_of(config, target)
        if pool is not None and (key := model_key(pool, pool)) not in drafters:
            drafters[key] = measure_drafter(pool, repeat)
    return [
        CostCurves(target.name, measure_target(target, repeat), _drafter_of(config, target, drafters))
        for target in config.targets
    ]


def _drafter_of(
    config: AppConfig, target: TargetConfig, drafters: Mapping[ModelKey, DrafterCosts]
) -> DrafterCosts | None:
    pool = pool_of(config, target)
    return drafters[model_key(pool, pool)] if pool is not None and target.speculation else None


def measure_target(config: TargetConfig, repeat: int) -> TargetCosts:
    with pinned_process(config):
        return target_costs(load(config), config.name, model_key(config, config), limits_of(config), repeat)


@dataclass(frozen=True, slots=True)
class TargetLimits:
    """Limits of a target: rows, tokens of one sequence, prompt tokens per pass."""

    max_batch: int
    max_length: int | None
    prefill_chunk: int


def limits_of(config: TargetConfig) -> TargetLimits:
    return TargetLimits(config.max_batch, config.max_model_len, config.prefill_chunk)


def startup_target_costs(model: TargetModel, config: TargetConfig) -> TargetCosts:
    """Costs of a starting target: the stored ones if they cover its maximum batch, or a coarse measurement."""
    key, limits = model_key(config, config), limits_of(config)
    num_rows = target_axes(model, limits).num_rows[-1]
    return find_or_measure(
        TargetCosts,
        key,
        lambda kept: kept.verify.points[0][-1] >= num_rows,
        lambda: target_costs(model, config.name, key, limits, START_REPEAT, startup_clock(config)),
    )


def startup_drafter_costs(drafter: NestedDrafter, config: PoolConfig) -> DrafterCosts:
    """Costs of a starting draft replica: stored, or from a coarse measurement."""
    key, num_rows = model_key(config, config), min(largest_batch(drafter, config.max_rows), START_ROWS)
    return find_or_measure(
        DrafterCosts,
        key,
        lambda kept: kept.draft.points[0][-1] >= num_rows,
        lambda: drafter_costs(drafter, key, num_rows, START_REPEAT, startup_clock(config)),
    )


def startup_clock(placement: Placement) -> Clock:
    return time.thread_time if device_of(placement).type == "cpu" else time.perf_counter


def target_axes(model: TargetModel, limits: TargetLimits) -> VerifyAxes:
    return verify_axes(limits.max_batch, model.ledger, min(model.max_length, limits.max_length or model.max_length))


def target_costs(
    model: TargetModel, name: str, key: ModelKey, limits: TargetLimits, repeat: int, start_clock: Clock | None = None
) -> TargetCosts:
    """Measures a target that nothing else uses meanwhile. start_clock: set for a coarse measurement."""
    axes = target_axes(model, limits)
    points = thin((axes.num_rows, axes.tokens_per_row, axes.contexts), coarse=start_clock is not None)
    longest = min(limits.prefill_chunk, axes.num_positions)
    chunks = thin(((*(size for size in PREFILL_TOKENS if size < longest), longest),), start_clock is not None)
    clock, minor = start_clock or time.perf_counter, 1 if start_clock else repeat
    with pass_timer(model, axes.num_rows[-1], axes.num_positions, clock) as time_pass:
        verify, error = sweep(
            lambda cell: time_pass(verify_pass(*cell)),
            (VERIFY_AXES, points, tuple(map(midpoints, points))),
            repeat,
            f"{name}: verify",
        )
        prefill, _ = sweep(
            lambda cell: time_pass(PassShape(1, cell[0], context=0, num_logits=1)),
            (PREFILL_AXES, chunks, tuple(map(midpoints, chunks))),
            minor,
            f"{name}: prefill",
        )
    overhead, _ = sweep(
        lambda cell: overhead_ms(model, cell[0], clock),
        (ROW_AXES, points[:1], (midpoints(points[0]),)),
        minor,
        f"{name}: overhead",
    )
    return TargetCosts(key, verify, prefill, overhead, error)


def verify_pass(num_rows: int, num_tokens: int, context: int) -> PassShape:
    return PassShape(num_rows, num_tokens, context, num_logits=num_tokens)


def load(config: TargetConfig) -> TargetModel:
    directory = resolve(config.path)
    with loading(directory) as progress:
        return load_target(
            directory,
            dtype=DTYPES[config.dtype],
            num_positions=target_positions(config, directory),
            page_size=config.page_size,
            device=device_of(config),
            execution=Execution(config.execution),
            progress=progress,
        )


def measure_drafter(config: PoolConfig, repeat: int) -> DrafterCosts:
    directory = resolve(config.path)
    with pinned_process(config):
        drafter = load_nested(
            directory,
            dtype=DTYPES[config.dtype],
            num_positions=pool_positions(config, directory),
            page_size=config.page_size,
            device=device_of(config),
            execution=Execution(config.execution),
        )
        return drafter_costs(drafter, model_key(config, config), config.max_rows, repeat)


def drafter_costs(
    drafter: NestedDrafter, key: ModelKey, max_rows: int, repeat: int, start_clock: Clock | None = None
) -> DrafterCosts:
    """Measures a drafter that nothing else uses meanwhile, and the link to it over loopback."""
    grid = (row_points(largest_batch(drafter, max_rows)), NUM_NEW)
    num_rows, num_new = thin(grid, coarse=start_clock is not None)
    points = (num_rows, drafter.exits, num_new, LENGTHS)
    held_back = (midpoints(num_rows), drafter.exits, midpoints(num_new), midpoints(LENGTHS))
    with draft_timer(drafter, num_rows[-1], start_clock or time.perf_counter) as time_round:
        draft, error = sweep(
            lambda cell: time_round(DraftRound(*cell)), (DRAFT_AXES, points, held_back), repeat, "pool: draft"
        )
    link = asyncio.run(measure_link(DraftWorker(drafter), num_rows, repeat))
    return DrafterCosts(key, draft, link, error)


async def measure_link(worker: DraftWorker, num_rows: tuple[int, ...], repeat: int) -> Curve:
    async with link_timer(worker) as time_round:
        grid = (ROW_AXES, (num_rows,), (midpoints(num_rows),))
        link, _ = await asyncio.to_thread(sweep, lambda cell: time_round(cell[0]), grid, repeat, "pool: link")
    return link


@contextmanager
def pinned_process(placement: Placement) -> Iterator[None]:
    """Pins this process as a replica's would be, and restores it at the end."""
    before = {"cores": tuple(sorted(os.sched_getaffinity(0))), "threads": torch.get_num_threads()}
    pin_process(placement)
    try:
        yield
    finally:
        pin_process(placement.model_copy(update=before))


def sweep(run: Run, grid: tuple[tuple[str, ...], Points, Points], repeat: int, label: str) -> tuple[Curve, float]:
    """Returns the curve and its median relative error.

    grid: names of the axes, their points, and the points to hold back.
    """
    axes, points, middle = grid
    on = list(product(*points))
    off = held_back(middle, min(max(len(on) // 6, 3), MAX_HELD_BACK))
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
