"""The drafter inside a target replica's process, for placement: colocated.

The engine's thread drafts and verifies in turn. Each uses all threads, and drafts cross no network. A drafter that is
the target's own model in other weights works on the target's KV.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from deployments.config import PoolConfig, TargetConfig
from deployments.local import open_own
from deployments.models import load_drafter
from deployments.placement import without_link
from deployments.pool import pool_limits
from deployments.profile_store import model_key
from deployments.profiling import START_REPEAT, START_ROWS, own_drafter_costs, startup_clock, startup_drafter_costs
from drafters.client import LocalDraftClient
from drafters.worker import DraftWorker
from model.execution import Execution
from model.files import resolve
from model.load import WeightFormat
from protocol.draft import DraftClient
from router.costs import DrafterCosts
from targets.model import TargetModel
from targets.own_client import OwnDraftClient


@dataclass(frozen=True, slots=True)
class ColocatedDrafter:
    """costs: None where no policy needs them."""

    client: DraftClient
    exits: tuple[int, ...]
    costs: DrafterCosts | None


def open_drafter(
    model: TargetModel, config: TargetConfig, pool: PoolConfig, incarnation: str, deadline_s: float, *, measured: bool
) -> ColocatedDrafter:
    """Loads the drafter.

    pool: the pool's config as placed for this target (deployments/placement.py). measured: whether a policy needs the
    cost of drafts.
    """
    execution, weights = Execution(config.execution), WeightFormat(pool.weights)
    own = open_own(model, resolve(config.path), resolve(pool.path), execution, weights)
    if own is not None:
        return ColocatedDrafter(own, own.exits, _own_costs(model, own, config, pool) if measured else None)
    drafter = load_drafter(pool)
    costs = without_link(startup_drafter_costs(drafter, pool)) if measured else None
    worker = DraftWorker(drafter, pool_limits(pool), time.monotonic)
    return ColocatedDrafter(LocalDraftClient(worker, incarnation, deadline_s), drafter.exits, costs)


def _own_costs(model: TargetModel, own: OwnDraftClient, config: TargetConfig, pool: PoolConfig) -> DrafterCosts:
    num_rows = min(config.max_batch, START_ROWS)
    return own_drafter_costs(model, own, model_key(pool, pool), num_rows, START_REPEAT, startup_clock(config))
