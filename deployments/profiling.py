"""Measuring the models of a config: every pass in turn, again and again.

The passes of a sweep are timed one after the other and the whole sweep is repeated, every other time backwards: a
machine that slows down meets all of them alike, and widths follow each other as in a real run. The first sweep warms
up. Some passes lie between the points of the grid; they stay out of the curve, and how well it foretells them is the
error that is reported.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise, product
from statistics import median

import torch
from tqdm import tqdm

from deployments.config import AppConfig, Placement, PoolConfig, TargetConfig
from deployments.generate import BAR_AFTER_S, loading
from deployments.process import DTYPES, claim, device_of, pool_positions, target_positions
from deployments.profile_link import link_timer
from deployments.profile_store import model_key
from drafters.nested import load_nested
from drafters.profile import LENGTHS, NUM_NEW, DraftRound, draft_timer, largest_batch
from drafters.worker import DraftWorker
from model.load import resolve
from router.costs import (
    DRAFT_AXES,
    PREFILL_AXES,
    ROW_AXES,
    VERIFY_AXES,
    CostCurves,
    Curve,
    DrafterCosts,
    TargetCosts,
    row_points,
)
from targets.model import TargetModel, load_target
from targets.profile import Pass, overhead_ms, pass_timer, verify_axes

PREFILL_TOKENS = (16, 64, 256, 512)
NUM_HELD_BACK = 12

Cell = tuple[int, ...]
Points = tuple[tuple[int, ...], ...]
Run = Callable[[Cell], float]  # milliseconds of one pass


def measure(config: AppConfig, repeat: int) -> list[CostCurves]:
    """Curves of every target, with the pool's drafter for those that speculate."""
    drafter = measure_drafter(config.pool, repeat) if config.pool else None
    return [
        CostCurves(target.name, measure_target(target, repeat), drafter if target.speculation else None)
        for target in config.targets
    ]


def measure_target(config: TargetConfig, repeat: int) -> TargetCosts:
    with placed(config):
        model = load(config)
        length = min(model.max_length, config.max_model_len or model.max_length)
        axes = verify_axes(config.max_batch, model.ledger, length)
        points = (axes.num_rows, axes.tokens_per_row, axes.contexts)
        longest = min(config.prefill_chunk, axes.num_positions)
        chunks = (*(size for size in PREFILL_TOKENS if size < longest), longest)
        with pass_timer(model, axes.num_rows[-1], axes.num_positions) as time_pass:
            verify, error = sweep(
                lambda cell: time_pass(verify_pass(*cell)),
                (VERIFY_AXES, points, tuple(map(middles, points))),
                repeat,
                f"{config.name}: verify",
            )
            prefill, _ = sweep(
                lambda cell: time_pass(Pass(1, cell[0], context=0, num_logits=1)),
                (PREFILL_AXES, (chunks,), (middles(chunks),)),
                repeat,
                f"{config.name}: prefill",
            )
        overhead, _ = sweep(
            lambda cell: overhead_ms(model, cell[0]),
            (ROW_AXES, points[:1], (middles(points[0]),)),
            repeat,
            f"{config.name}: overhead",
        )
    return TargetCosts(model_key(config, config), verify, prefill, overhead, error)


def verify_pass(num_rows: int, num_tokens: int, context: int) -> Pass:
    return Pass(num_rows, num_tokens, context, num_logits=num_tokens)


def load(config: TargetConfig) -> TargetModel:
    directory = resolve(config.path)
    with loading(directory) as progress:
        return load_target(
            directory,
            dtype=DTYPES[config.dtype],
            num_positions=target_positions(config, directory),
            page_size=config.page_size,
            device=device_of(config),
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
        )
        num_rows = row_points(largest_batch(drafter, config.max_rows))
        points = (num_rows, drafter.exits, NUM_NEW, LENGTHS)
        held_back = (middles(num_rows), drafter.exits, middles(NUM_NEW), middles(LENGTHS))
        with draft_timer(drafter, num_rows[-1]) as time_round:
            draft, error = sweep(
                lambda cell: time_round(DraftRound(*cell)), (DRAFT_AXES, points, held_back), repeat, "pool: draft"
            )
        link = asyncio.run(measure_link(DraftWorker(drafter), num_rows, repeat))
    return DrafterCosts(model_key(config, config), draft, link, error)


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
    on, off = list(product(*points)), held_back(middle)
    ms = interleaved(run, [*on, *off], repeat, label)
    curve = Curve(axes, tuple(tuple(map(float, axis)) for axis in points), tuple(ms[: len(on)]))
    return curve, median_error(curve, off, ms[len(on) :])


def interleaved(run: Run, cells: Sequence[Cell], repeat: int, label: str) -> list[float]:
    """Median milliseconds of each cell."""
    times: list[list[float]] = [[] for _ in cells]
    order = range(len(cells))
    total = (repeat + 1) * len(cells)
    with tqdm(total=total, desc=label, unit="pass", delay=BAR_AFTER_S, leave=False) as bar:
        for turn in range(repeat + 1):
            for index in order if turn % 2 else reversed(order):
                ms = run(cells[index])
                if turn:
                    times[index].append(ms)
                bar.update()
    return [round(median(each), 5) for each in times]


def middles(points: Sequence[int]) -> tuple[int, ...]:
    """Halfway between neighbours that leave room for it; the last point where none do."""
    return tuple((a + b) // 2 for a, b in pairwise(points) if b - a > 1) or (points[-1],)


def held_back(middle: Points) -> list[Cell]:
    """A fixed sample of what lies between the points of a grid."""
    cells = list(product(*middle))
    return random.Random(0).sample(cells, min(NUM_HELD_BACK, len(cells)))


def median_error(curve: Curve, cells: Sequence[Cell], ms: Sequence[float]) -> float:
    """Of what the curve says for these cells, relative to what was measured."""
    return median(abs(curve.at(*cell) / max(real, 1e-9) - 1) for cell, real in zip(cells, ms, strict=True))
