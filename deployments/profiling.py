"""Measures the cost of passes of a config's models.

A starting replica without stored costs measures a coarse grid (every other point), which takes a second or two. Other
replicas start on the same cores at that time, so on a CPU it uses the thread's CPU time. With six times as many busy
processes as cores, two such measurements mostly agreed within 10 %; by wall-clock time, within 300 %.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from deployments.config import AppConfig, PoolConfig, TargetConfig
from deployments.config_replica import Placement
from deployments.local import open_own, works_on
from deployments.models import load_drafter, load_model
from deployments.placement import pool_of
from deployments.process import device_of, pinned_process
from deployments.profile_store import drafter_key, find_or_measure, model_key
from deployments.progress import loading
from deployments.sweep import Cell, checked_sweep, midpoints, sweep, thin
from drafters.link_profile import link_timer
from drafters.nested import NestedDrafter
from drafters.profile import LENGTHS, NUM_NEW, DraftRound, draft_timer, largest_batch
from drafters.worker import DraftWorker
from model.execution import Execution
from model.files import resolve
from model.load import WeightFormat
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
from targets.model import TargetModel
from targets.own_client import OwnDraftClient
from targets.profile import OWN_LENGTHS, PassShape, overhead_ms, own_draft_timer, pass_timer, verify_axes

PREFILL_TOKENS = (16, 64, 256, 512)
START_REPEAT, START_ROWS = 3, 16

Clock = Callable[[], float]  # seconds
T = TypeVar("T", TargetCosts, DrafterCosts)


def measure(config: AppConfig, repeat: int) -> list[CostCurves]:
    """Cost curves of every target, with the drafter's for targets that speculate."""
    drafters: dict[ModelKey, DrafterCosts] = {}  # several if colocated: the cost depends on the target's threads
    curves = []
    for target in config.targets:
        pool, own = pool_of(config, target), works_on_kv_of(target, config)
        costs, drafter = measure_target(target, repeat, pool if own else None)
        if pool and not own:
            key = drafter_key(pool, own=False)
            drafter = drafters[key] = drafters.get(key) or measure_drafter(pool, repeat)
        curves.append(CostCurves(target.name, costs, drafter if target.speculation else None))
    return curves


def works_on_kv_of(target: TargetConfig, config: AppConfig) -> bool:
    """Whether the pool's drafter, in this target's process, goes on from its KV."""
    if config.pool is None or config.placement == "separate":
        return False
    return works_on(resolve(target.path), resolve(config.pool.path))


def measure_target(
    config: TargetConfig, repeat: int, own: PoolConfig | None = None
) -> tuple[TargetCosts, DrafterCosts | None]:
    """own: of a drafter that works on the target's KV, as placed for this target."""
    with pinned_process(config):
        with loading(config.path) as progress:
            model = load_model(config, progress)
        costs = target_costs(model, config, model_key(config, config), repeat)
        if own is None:
            return costs, None
        execution, weights = Execution(config.execution), WeightFormat(own.weights)
        client = open_own(model, resolve(config.path), resolve(own.path), execution, weights)
        assert client is not None
        key = drafter_key(own, own=True)
        return costs, own_drafter_costs(model, client, key, config.max_batch, repeat)


def measure_drafter(config: PoolConfig, repeat: int) -> DrafterCosts:
    with pinned_process(config):
        with loading(config.path):
            drafter = load_drafter(config)
        return drafter_costs(drafter, drafter_key(config, own=False), config.max_rows, repeat)


def startup_target_costs(model: TargetModel, config: TargetConfig) -> TargetCosts:
    """Of a starting target."""
    key, num_rows = model_key(config, config), min(config.max_batch, model.ledger.num_free)
    return _startup_costs(TargetCosts, key, num_rows, config, partial(target_costs, model, config, key))


def startup_drafter_costs(drafter: NestedDrafter, config: PoolConfig) -> DrafterCosts:
    """Of a starting draft replica, or of a drafter in a starting target's process."""
    key, num_rows = drafter_key(config, own=False), min(largest_batch(drafter, config.max_rows), START_ROWS)
    return _startup_costs(DrafterCosts, key, num_rows, config, partial(drafter_costs, drafter, key, num_rows))


def startup_own_costs(
    model: TargetModel, client: OwnDraftClient, config: TargetConfig, pool: PoolConfig
) -> DrafterCosts:
    """Of a drafter on the KV of a starting target."""
    key, num_rows = drafter_key(pool, own=True), min(config.max_batch, START_ROWS, model.ledger.num_free)
    return _startup_costs(DrafterCosts, key, num_rows, config, partial(own_drafter_costs, model, client, key, num_rows))


def _startup_costs(
    kind: type[T], key: ModelKey, num_rows: int, placement: Placement, measure: Callable[[int, Clock], T]
) -> T:
    """The stored costs if they cover so many rows, or a coarse measurement."""
    clock = time.thread_time if device_of(placement).type == "cpu" else time.perf_counter
    return find_or_measure(kind, key, num_rows, lambda: measure(START_REPEAT, clock))


def target_costs(
    model: TargetModel, config: TargetConfig, key: ModelKey, repeat: int, start_clock: Clock | None = None
) -> TargetCosts:
    """Measures a target that nothing else uses meanwhile. start_clock: set for a coarse measurement."""
    clock, coarse = start_clock or time.perf_counter, start_clock is not None
    axes = verify_axes(config.max_batch, model.ledger, min(model.max_length, config.max_model_len or model.max_length))
    points = thin((axes.num_rows, axes.tokens_per_row, axes.contexts), coarse)
    longest = min(config.prefill_chunk, axes.num_positions)
    chunks = thin(((*(size for size in PREFILL_TOKENS if size < longest), longest),), coarse)
    minor = 1 if coarse else repeat
    with pass_timer(model, axes.num_rows[-1], axes.num_positions, clock) as time_pass:

        def verify_ms(cell: Cell) -> float:
            num_rows, num_tokens, context = cell
            return time_pass(PassShape(num_rows, num_tokens, context, num_logits=num_tokens))

        def prefill_ms(cell: Cell) -> float:
            return time_pass(PassShape(1, cell[0], context=0, num_logits=1))

        between = tuple(map(midpoints, points))
        verify, error = checked_sweep(verify_ms, VERIFY_AXES, points, between, repeat, f"{config.name}: verify")
        prefill = sweep(prefill_ms, PREFILL_AXES, chunks, minor, f"{config.name}: prefill")
    overhead = sweep(
        lambda cell: overhead_ms(model, cell[0], clock), ROW_AXES, points[:1], minor, f"{config.name}: overhead"
    )
    return TargetCosts(key, verify, prefill, overhead, error)


def drafter_costs(
    drafter: NestedDrafter, key: ModelKey, max_rows: int, repeat: int, start_clock: Clock | None = None
) -> DrafterCosts:
    """Measures a drafter that nothing else uses meanwhile, and the link to it over loopback."""
    grid = (row_points(largest_batch(drafter, max_rows)), NUM_NEW)
    num_rows, num_new = thin(grid, coarse=start_clock is not None)
    points = (num_rows, drafter.exits, num_new, LENGTHS)
    between = (midpoints(num_rows), drafter.exits, midpoints(num_new), midpoints(LENGTHS))
    with draft_timer(drafter, num_rows[-1], start_clock or time.perf_counter) as time_round:
        draft, error = checked_sweep(
            lambda cell: time_round(DraftRound(*cell)), DRAFT_AXES, points, between, repeat, "pool: draft"
        )
    link = asyncio.run(measure_link(DraftWorker(drafter), num_rows, repeat))
    return DrafterCosts(key, draft, link, error)


def own_drafter_costs(
    model: TargetModel,
    client: OwnDraftClient,
    key: ModelKey,
    max_rows: int,
    repeat: int,
    start_clock: Clock | None = None,
) -> DrafterCosts:
    """Measures a drafter on the target's KV, which has no context to catch up with and no link."""
    coarse = start_clock is not None
    (num_rows,) = thin((row_points(min(max_rows, model.ledger.num_free)),), coarse)
    points = (num_rows, client.exits, (1,), OWN_LENGTHS)
    between = (midpoints(num_rows), *points[1:3], midpoints(OWN_LENGTHS))
    with own_draft_timer(model, client, num_rows[-1], start_clock or time.perf_counter) as time_draft:
        draft, error = checked_sweep(
            lambda cell: time_draft(cell[0], cell[3]), DRAFT_AXES, points, between, repeat, "own drafter"
        )
    return DrafterCosts(key, draft, Curve(ROW_AXES, ((1.0,),), (0.0,)), error)


async def measure_link(worker: DraftWorker, num_rows: tuple[int, ...], repeat: int) -> Curve:
    async with link_timer(worker) as time_round:
        return await asyncio.to_thread(
            sweep, lambda cell: time_round(cell[0]), ROW_AXES, (num_rows,), repeat, "pool: link"
        )
