"""The drafter inside a target replica's process, for placement: colocated.

The engine's thread drafts and verifies in turn. Each uses all threads, and drafts cross no network. A drafter that is
the target's own model in other weights works on the target's KV.
"""

from __future__ import annotations

import time

from deployments.config import PoolConfig, TargetConfig
from deployments.local import LocalDrafter, open_own
from deployments.models import load_drafter
from deployments.placement import without_link
from deployments.pool import pool_limits
from deployments.profiling import startup_drafter_costs, startup_own_costs
from drafters.client import LocalDraftClient
from drafters.worker import DraftWorker
from model.execution import Execution
from model.files import resolve
from model.load import WeightFormat
from targets.model import TargetModel


def open_colocated(
    model: TargetModel, config: TargetConfig, pool: PoolConfig, incarnation: str, deadline_s: float, *, measured: bool
) -> LocalDrafter:
    """Loads the drafter.

    pool: the pool's config as placed for this target (deployments/placement.py). measured: whether a policy needs the
    cost of drafts.
    """
    execution, weights = Execution(config.execution), WeightFormat(pool.weights)
    own = open_own(model, resolve(config.path), resolve(pool.path), execution, weights)
    if own is not None:
        return LocalDrafter(own, own.exits, startup_own_costs(model, own, config, pool) if measured else None)
    drafter = load_drafter(pool)
    costs = without_link(startup_drafter_costs(drafter, pool)) if measured else None
    worker = DraftWorker(drafter, pool_limits(pool), time.monotonic)
    return LocalDrafter(LocalDraftClient(worker, incarnation, deadline_s), drafter.exits, costs)
