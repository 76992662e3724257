"""Where drafts are made, conversion of a config to the other placement, and the resources that a cluster needs for it.

separate    the pool has its own threads and devices behind a link, and can draft while a target verifies
colocated   each target replica runs the drafter in its own process: no link, and both use all threads in turn
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any, Literal, get_args

from deployments.config import POOL_PLACE, AppConfig, PoolConfig, TargetConfig
from deployments.config_replica import Placement, Replicas
from protocol.errors import ConfigError
from router.costs import Curve, DrafterCosts

Place = Literal["separate", "colocated"]
PLACES: tuple[Place, ...] = get_args(Place)


def pool_of(config: AppConfig, target: TargetConfig) -> PoolConfig | None:
    """The pool's config for this target: unchanged if separate, with the target's threads and devices if colocated."""
    if config.pool is None or config.placement == "separate":
        return config.pool
    return config.pool.model_copy(update={key: getattr(target, key) for key in POOL_PLACE})


def as_placed(config: AppConfig, place: Place) -> AppConfig:
    """The config in another placement, with the same number of threads in total and without pinned cores.

    Raises ConfigError if a target's threads cannot be divided.
    """
    if config.pool is None or place == config.placement:
        return config
    move = _colocate if place == "colocated" else _separate
    targets = tuple(move(target, config.pool) for target in config.targets)
    there: dict[str, Any] = {"num_replicas": 1, "threads": 1, "cores": None, "num_gpus": 0.0, "autoscaling": None}
    if place == "separate":
        there["num_gpus"] = max(target.num_gpus for target in config.targets)
    pool = config.pool.model_copy(update=there)
    return config.model_copy(update={"placement": place, "targets": targets, "pool": pool})


def _colocate(target: TargetConfig, pool: PoolConfig) -> TargetConfig:
    speculation = target.speculation and target.speculation.model_copy(update={"ahead": None})
    threads = target.threads + pool.threads
    return target.model_copy(update={"threads": threads, "cores": None, "speculation": speculation})


def _separate(target: TargetConfig, pool: PoolConfig) -> TargetConfig:
    """Gives one of the target's threads to the pool."""
    if target.threads < 2 and not target.num_gpus:
        raise ConfigError(f"target {target.name} has one thread, which leaves none for a separate pool; give it two")
    return target.model_copy(update={"threads": max(target.threads - 1, 1), "cores": None})


def without_link(costs: DrafterCosts) -> DrafterCosts:
    """The costs without the link, for a drafter in the target's own process."""
    link = costs.link
    return replace(costs, link=Curve(link.axes, link.points, (0.0,) * len(link.ms)))


def num_replicas(config: AppConfig) -> int:
    """At the start."""
    return config.ingress.num_replicas + sum(placement.first_replicas for placement in placements(config))


def cpus_needed(config: AppConfig) -> float:
    models = sum(placement.threads * placement.most_replicas for placement in placements(config))
    return models + config.ingress.num_cpus * config.ingress.num_replicas


def resources_needed(config: AppConfig) -> dict[str, float]:
    """Custom resources by name. A local cluster is started with exactly these."""
    needed: Counter[str] = Counter()
    parts: list[Replicas] = [*placements(config), config.ingress]
    for part in parts:
        for name, amount in part.resources.items():
            needed[name] += math.ceil(amount * part.most_replicas)
    return {name: float(amount) for name, amount in needed.items()}


def placements(config: AppConfig) -> list[Placement]:
    """The placements of all models. A colocated drafter has none; it uses its target's."""
    return [*config.targets, *([config.pool] if config.pool and config.placement == "separate" else [])]
