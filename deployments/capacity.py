"""The resources that an application needs from a cluster."""

from __future__ import annotations

import math
from collections import Counter

from deployments.config import AppConfig
from deployments.config_replica import Placement, Replicas


def num_replicas(config: AppConfig) -> int:
    return config.ingress.num_replicas + sum(placement.num_replicas for placement in placements(config))


def cpus_needed(config: AppConfig) -> float:
    models = sum(placement.threads * placement.num_replicas for placement in placements(config))
    return models + config.ingress.num_cpus * config.ingress.num_replicas


def resources_needed(config: AppConfig) -> dict[str, float]:
    """Custom resources by name. A local cluster is started with exactly these."""
    needed: Counter[str] = Counter()
    parts: list[Replicas] = [*placements(config), config.ingress]
    for part in parts:
        for name, amount in part.resources.items():
            needed[name] += math.ceil(amount * part.num_replicas)
    return {name: float(amount) for name, amount in needed.items()}


def placements(config: AppConfig) -> list[Placement]:
    """The placements of all models. A colocated drafter has none; it uses its target's."""
    return [*config.targets, *([config.pool] if config.pool and config.placement == "separate" else [])]
