"""Where drafts are made, and the same application placed the other way.

separate    a pool with threads and devices of its own, a link away; it may draft while a target verifies
colocated   each target replica has the drafter in its own process: no link, both have all of its threads in turn
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

from deployments.config import POOL_PLACE, AppConfig, PoolConfig, TargetConfig
from protocol.errors import ConfigError
from router.costs import Curve, DrafterCosts

Place = Literal["separate", "colocated"]
PLACES: tuple[Place, ...] = get_args(Place)


def pool_of(config: AppConfig, target: TargetConfig) -> PoolConfig | None:
    """The pool as it drafts for this target: in its own place, or in the target's."""
    if config.pool is None or config.placement == "separate":
        return config.pool
    return config.pool.model_copy(update={key: getattr(target, key) for key in POOL_PLACE})


def as_placed(config: AppConfig, place: Place) -> AppConfig:
    """The same threads in all, placed so; cores are left open. Raises ConfigError where there is nothing to divide."""
    if config.pool is None or place == config.placement:
        return config
    move = _joined if place == "colocated" else _divided
    targets = tuple(move(target, config.pool) for target in config.targets)
    there = {"num_replicas": 1, "threads": 1, "cores": None, "num_gpus": 0.0}
    if place == "separate":
        there["num_gpus"] = max(target.num_gpus for target in config.targets)
    pool = config.pool.model_copy(update=there)
    return config.model_copy(update={"placement": place, "targets": targets, "pool": pool})


def _joined(target: TargetConfig, pool: PoolConfig) -> TargetConfig:
    speculation = target.speculation and target.speculation.model_copy(update={"mirror": None})
    threads = target.threads + pool.threads
    return target.model_copy(update={"threads": threads, "cores": None, "speculation": speculation})


def _divided(target: TargetConfig, pool: PoolConfig) -> TargetConfig:
    """The pool has one of the threads."""
    if target.threads < 2 and not target.num_gpus:
        raise ConfigError(f"target {target.name} has one thread, which leaves none for a pool of its own; give it two")
    return target.model_copy(update={"threads": max(target.threads - 1, 1), "cores": None})


def without_link(costs: DrafterCosts) -> DrafterCosts:
    """Of a drafter in the target's own process."""
    link = costs.link
    return replace(costs, link=Curve(link.axes, link.points, (0.0,) * len(link.ms)))
