"""The models of the demo: SmolLM2 where its package is, else the small code models; fitted to cores."""

from __future__ import annotations

from deployments.config import CONFIGS, AppConfig, load_config
from model.packages import PREFIX, package_path
from protocol.errors import ConfigError

SMOLLM2, CODE = CONFIGS / "smollm2.yaml", CONFIGS / "demo.yaml"
MAX_THREADS = 4  # threads per target; the demo's targets are small


def demo_family(num_cores: int) -> tuple[AppConfig, list[str]]:
    """The family that is here, fitted to the cores, and a line about the one that is not."""
    config, told = load_config(SMOLLM2), list[str]()
    try:
        find_packages(config)
    except ConfigError as error:
        config, told = load_config(CODE), [f"the small code models, without SmolLM2: {error}"]
    return fit_to_cores(config, num_cores), told


def find_packages(config: AppConfig) -> None:
    """Raises ConfigError for the first target whose package is not installed."""
    for target in config.targets:
        if target.path.startswith(PREFIX):
            package_path(target.path)


def fit_to_cores(config: AppConfig, num_cores: int) -> AppConfig:
    """The config with as many draft replicas and threads per target as the cores allow, at least one of each.

    A target waits while it is drafted for, so one draft replica and two targets with one thread each fit two cores. A
    colocated drafter takes its target's threads.
    """
    num_targets = sum(target.num_replicas for target in config.targets)
    pool, left = config.pool, num_cores
    if pool is not None and config.placement == "separate":
        num_replicas = min(pool.num_replicas, max(1, num_cores - num_targets))
        pool = pool.model_copy(update={"num_replicas": num_replicas, "threads": 1})
        left -= num_replicas
    threads = max(1, min(MAX_THREADS, left // num_targets))
    targets = tuple(target.model_copy(update={"threads": threads}) for target in config.targets)
    return config.model_copy(update={"targets": targets, "pool": pool})
