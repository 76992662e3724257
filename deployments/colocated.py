"""A target replica's own drafter, in its process and on its threads: what placement: colocated puts there.

The engine's thread drafts and verifies in turn, so each has all threads, and drafts come over no link.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from deployments.config import PoolConfig, TargetConfig
from deployments.local import check_vocabulary
from deployments.placement import without_link
from deployments.pool import load_drafter, pool_limits
from deployments.profiling import own_drafter_costs
from drafters.client import LocalDraftClient
from drafters.manifest import vocabulary_hash
from drafters.worker import DraftWorker
from link.discovery import PoolMember
from model.files import resolve


@dataclass(frozen=True, slots=True)
class OwnDrafter:
    """member: what a draft replica would say of itself."""

    member: PoolMember
    client: LocalDraftClient


def open_drafter(
    config: TargetConfig, pool: PoolConfig, incarnation: str, deadline_s: float, *, measured: bool
) -> OwnDrafter:
    """pool: as it drafts for this target (deployments/placement.py). measured: whether a policy asks what drafts cost.

    Raises ConfigError for a drafter of another vocabulary.
    """
    check_vocabulary(resolve(config.path), resolve(pool.path))
    drafter = load_drafter(pool)
    costs = without_link(own_drafter_costs(drafter, pool)) if measured else None
    worker = DraftWorker(drafter, pool_limits(pool), time.monotonic)
    told = worker.describe()
    member = PoolMember(
        address="",
        incarnation=incarnation,
        exits=told.exits,
        vocabulary_hash=vocabulary_hash(resolve(pool.path)),
        max_positions=told.max_positions,
        num_targets=0,
        stats=worker.stats(),
        costs=costs,
    )
    return OwnDrafter(member, LocalDraftClient(worker, incarnation, deadline_s))
