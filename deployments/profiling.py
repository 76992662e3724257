"""Measuring the models of a config: every pass in turn, again and again.

The passes of a sweep are timed one after the other and the whole sweep is repeated, every other time backwards: a
machine that slows down meets all of them alike, and widths follow each other as in a real run. The first sweep warms
up. Some passes lie between the points of the grid; they stay out of the curve, and how well it foretells them is the
error that is reported.

A replica that starts and finds nothing kept measures itself in a second or two: on a coarse grid, every other point.
Others start beside it on the same cores, so on a CPU it counts its thread's own time, in which nobody else's is. With
six times as many busy processes as cores, two such looks mostly agreed within 10 %, by the wall clock within 300 %.
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

from deployments.config import AppConfig, Placement, PoolConfig, TargetConfig
from deployments.placement import pool_of
from deployments.process import DTYPES, claim, device_of, pool_positions, target_positions
from deployments.profile_link import link_timer
from deployments.profile_store import found_or_measured, model_key
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
    """Curves of every target, with the pool's drafter for those that speculate."""
    drafters: dict[ModelKey, DrafterCosts] = {}  # a colocated one costs what its target's threads make it
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
    with placed(config):
        return target_costs(load(config), config.name, model_key(config, config), limits(config), repeat)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a target may be asked for: rows, tokens of one sequence, prompt tokens in one pass."""

    max_batch: int
    max_length: int | None
    prefill_chunk: int


def limits(config: TargetConfig) -> Limits:
    return Limits(config.max_batch, config.max_model_len, config.prefill_chunk)


def own_target_costs(model: TargetModel, config: TargetConfig) -> TargetCosts:
    """Of a target as it starts: what is kept, if it reaches as many rows as the target may have, or a quick look."""
    key, asked = model_key(config, config), limits(config)
    num_rows = target_axes(model, asked).num_rows[-1]
    return found_or_measured(
        TargetCosts,
        key,
        lambda kept: kept.verify.points[0][-1] >= num_rows,
        lambda: target_costs(model, config.name, key, asked, START_REPEAT, own_clock(config)),
    )


def own_drafter_costs(drafter: NestedDrafter, config: PoolConfig) -> DrafterCosts:
    """Of a draft replica as it starts, likewise."""
    key, num_rows = model_key(config, config), min(largest_batch(drafter, config.max_rows), START_ROWS)
    return found_or_measured(
        DrafterCosts,
        key,
        lambda kept: kept.draft.points[0][-1] >= num_rows,
        lambda: drafter_costs(drafter, key, num_rows, START_REPEAT, own_clock(config)),
    )


def own_clock(placement: Placement) -> Clock:
    return time.thread_time if device_of(placement).type == "cpu" else time.perf_counter


def target_axes(model: TargetModel, limits: Limits) -> VerifyAxes:
    return verify_axes(limits.max_batch, model.ledger, min(model.max_length, limits.max_length or model.max_length))


def target_costs(
    model: TargetModel, name: str, key: ModelKey, limits: Limits, repeat: int, start_clock: Clock | None = None
) -> TargetCosts:
    """Of a target that nobody else uses meanwhile; its pages are given back. start_clock: for a coarse look."""
    axes = target_axes(model, limits)
    points = thinned((axes.num_rows, axes.tokens_per_row, axes.contexts), coarse=start_clock is not None)
    longest = min(limits.prefill_chunk, axes.num_positions)
    chunks = thinned(((*(size for size in PREFILL_TOKENS if size < longest), longest),), start_clock is not None)
    clock, minor = start_clock or time.perf_counter, 1 if start_clock else repeat
    with pass_timer(model, axes.num_rows[-1], axes.num_positions, clock) as time_pass:
        verify, error = sweep(
            lambda cell: time_pass(verify_pass(*cell)),
            (VERIFY_AXES, points, tuple(map(middles, points))),
            repeat,
            f"{name}: verify",
        )
        prefill, _ = sweep(
            lambda cell: time_pass(PassShape(1, cell[0], context=0, num_logits=1)),
            (PREFILL_AXES, chunks, tuple(map(middles, chunks))),
            minor,
            f"{name}: prefill",
        )
    overhead, _ = sweep(
        lambda cell: overhead_ms(model, cell[0], clock),
        (ROW_AXES, points[:1], (middles(points[0]),)),
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
    with placed(config):
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
    """Of a drafter that nobody else uses meanwhile, and of the link to it over loopback; otherwise likewise."""
    grid = (row_points(largest_batch(drafter, max_rows)), NUM_NEW)
    num_rows, num_new = thinned(grid, coarse=start_clock is not None)
    points = (num_rows, drafter.exits, num_new, LENGTHS)
    held_back = (middles(num_rows), drafter.exits, middles(num_new), middles(LENGTHS))
    with draft_timer(drafter, num_rows[-1], start_clock or time.perf_counter) as time_round:
        draft, error = sweep(
            lambda cell: time_round(DraftRound(*cell)), (DRAFT_AXES, points, held_back), repeat, "pool: draft"
        )
    link = asyncio.run(measure_link(DraftWorker(drafter), num_rows, repeat))
    return DrafterCosts(key, draft, link, error)


async def measure_link(worker: DraftWorker, num_rows: tuple[int, ...], repeat: int) -> Curve:
    async with link_timer(worker) as time_round:
        grid = (ROW_AXES, (num_rows,), (middles(num_rows),))
        link, _ = await asyncio.to_thread(sweep, lambda cell: time_round(cell[0]), grid, repeat, "pool: link")
    return link


@contextmanager
def placed(placement: Placement) -> Iterator[None]:
    """This process as a replica's would be, and back again."""
    before = {"cores": tuple(sorted(os.sched_getaffinity(0))), "threads": torch.get_num_threads()}
    claim(placement)
    try:
        yield
    finally:
        claim(placement.model_copy(update=before))


def sweep(run: Run, grid: tuple[tuple[str, ...], Points, Points], repeat: int, label: str) -> tuple[Curve, float]:
    """grid: names of the axes, their points, and the points to hold back. The curve, and its median relative error."""
    axes, points, middle = grid
    on = list(product(*points))
    off = held_back(middle, min(max(len(on) // 6, 3), MAX_HELD_BACK))
    ms = interleaved(run, [*on, *off], repeat, label)
    curve = Curve(axes, tuple(tuple(map(float, axis)) for axis in points), tuple(ms[: len(on)]))
    return curve, median_error(curve, off, ms[len(on) :])


def interleaved(run: Run, cells: Sequence[Cell], repeat: int, label: str) -> list[float]:
    """Milliseconds of each cell: the lower quartile, since all that a machine does beside only adds to a pass."""
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
    return [round(sorted(each)[len(each) // 4], 5) for each in times]


def middles(points: Sequence[int]) -> tuple[int, ...]:
    """Halfway between neighbours that leave room for it; the last point where none do."""
    return tuple((a + b) // 2 for a, b in pairwise(points) if b - a > 1) or (points[-1],)


def held_back(middle: Points, number: int) -> list[Cell]:
    """A fixed sample of what lies between the points of a grid."""
    cells = list(product(*middle))
    return random.Random(0).sample(cells, min(number, len(cells)))


def thinned(axes: Points, coarse: bool) -> Points:
    """Every other point of each axis, and the last; all of them unless coarse."""
    return tuple((*points[:-1:2], points[-1]) for points in axes) if coarse else axes


def median_error(curve: Curve, cells: Sequence[Cell], ms: Sequence[float]) -> float:
    """Of what the curve says for these cells, relative to what was measured."""
    return median(abs(curve.at(*cell) / max(real, 1e-9) - 1) for cell, real in zip(cells, ms, strict=True))
