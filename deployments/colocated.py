"""The drafter inside a target replica's process, for placement: colocated.

The engine's thread drafts and verifies in turn. Each uses all threads, and drafts cross no network.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from deployments.config import PoolConfig, TargetConfig
from deployments.models import load_drafter
from deployments.placement import without_link
from deployments.pool import pool_limits
from deployments.profiling import startup_drafter_costs
from drafters.client import LocalDraftClient
from drafters.manifest import vocabulary_hash
from drafters.worker import DraftWorker
from link.discovery import PoolMember
from model.files import resolve


@dataclass(frozen=True, slots=True)
class ColocatedDrafter:
    """A colocated drafter. member: the description that a draft replica would give of itself."""

    member: PoolMember
    client: LocalDraftClient


def open_drafter(
    config: TargetConfig, pool: PoolConfig, incarnation: str, deadline_s: float, *, measured: bool
) -> ColocatedDrafter:
    """Loads the drafter.

    pool: the pool's config as placed for this target (deployments/placement.py). measured: whether a policy needs the
    cost of drafts.
    """
    drafter = load_drafter(pool)
    costs = without_link(startup_drafter_costs(drafter, pool)) if measured else None
    worker = DraftWorker(drafter, pool_limits(pool), time.monotonic)
    info = worker.describe()
    member = PoolMember(
        address="",
        incarnation=incarnation,
        exits=info.exits,
        vocabulary_hash=vocabulary_hash(resolve(pool.path)),
        max_positions=info.max_positions,
        num_targets=0,
        stats=worker.stats(),
        costs=costs,
    )
    return ColocatedDrafter(member, LocalDraftClient(worker, incarnation, deadline_s))
