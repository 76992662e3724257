"""The models of the demo: SmolLM2 where its package and drafter are, else the small code models; fitted to cores."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from deployments.config import CONFIGS, AppConfig, load_config
from model.packages import PREFIX, package_path
from protocol.errors import ConfigError

SMOLLM2, CODE = CONFIGS / "smollm2.yaml", CONFIGS / "demo.yaml"
MAX_THREADS = 4  # threads per target; the demo's targets are small


def demo_family(num_cores: int) -> tuple[AppConfig, list[str]]:
    """The family that is here, fitted to the cores, and a line about the one that is not."""
    config, told = load_config(SMOLLM2), list[str]()
    try:
        find_packages(target.path for target in config.targets)
        _find_drafter(config)
    except ConfigError as error:
        config, told = load_config(CODE), [f"the small code models, without SmolLM2: {error}"]
    return fit_to_cores(config, num_cores), told


def find_packages(paths: Iterable[str]) -> None:
    """Raises ConfigError for the first path whose package is not installed."""
    for path in paths:
        if path.startswith(PREFIX):
            package_path(path)


def _find_drafter(config: AppConfig) -> None:
    """Raises ConfigError where the pool's drafter is not there."""
    if config.pool is not None and not Path(config.pool.path).exists():
        raise ConfigError(f"{config.pool.path} is not there; demo/smollm2.yaml says how to train it")


def fit_to_cores(config: AppConfig, num_cores: int) -> AppConfig:
    """The config with as many draft replicas and threads per target as the cores allow, at least one of each.

    A target waits while it is drafted for, so one draft replica and two targets with one thread each fit two cores.
    """
    num_targets = sum(target.num_replicas for target in config.targets)
    pool, left = config.pool, num_cores
    if pool is not None:
        num_replicas = min(pool.num_replicas, max(1, num_cores - num_targets))
        pool = pool.model_copy(update={"num_replicas": num_replicas, "threads": 1})
        left -= num_replicas
    threads = max(1, min(MAX_THREADS, left // num_targets))
    targets = tuple(target.model_copy(update={"threads": threads}) for target in config.targets)
    return config.model_copy(update={"targets": targets, "pool": pool})
