"""Stores measured costs in the cache folder. The key covers machine, model, threads and versions."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import torch

from deployments.config import PoolConfig
from deployments.config_replica import Placement, Weights
from deployments.process import device_of
from drafters.manifest import drafter_exits
from model.execution import why_not_native
from model.files import resolve
from model.native.compiler import cache_directory, library_path
from protocol.errors import ConfigError
from router.cost_files import cache_name, dumps_costs, loads_costs
from router.costs import DrafterCosts, ModelKey, TargetCosts

T = TypeVar("T", TargetCosts, DrafterCosts)
logger = logging.getLogger(__name__)


def model_key(weights: Weights, placement: Placement) -> ModelKey:
    device = device_of(placement)
    kind = "eager" if weights.execution == "eager" else kernels(device)
    versions = f"draftpool {version('draftpool')}, torch {torch.__version__}, {kind}, caches swept"
    kind = weights.dtype if weights.weights == "stored" else f"{weights.dtype} {weights.weights}"
    return ModelKey(device_name(device), fingerprint(resolve(weights.path)), kind, placement.threads, versions)


def drafter_key(pool: PoolConfig, *, own: bool) -> ModelKey:
    """own: the drafter works on its target's KV, and reads no prompt."""
    key = model_key(pool, pool)
    return replace(key, versions=f"{key.versions}, on its target's KV") if own else key


def kernels(device: torch.device) -> str:
    """The kernels in use: "eager" for torch's, or "native" and the build's hash."""
    if device.type != "cpu" or why_not_native():
        return "eager"
    return f"native {library_path().stem[:12]}"


def fingerprint(directory: Path) -> str:
    """A hash of config.json and the exits. Weights are left out: models of the same shape cost the same."""
    shape = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    text = json.dumps([shape, drafter_exits(directory)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.machine()
    return f"{os.cpu_count()} x {name}, {torch.backends.cpu.get_cpu_capability()}"


def cache_folder() -> Path:
    """$DRAFTPOOL_CACHE/profiles, or a folder in the user's cache."""
    return cache_directory() / "profiles"


def keep(costs: TargetCosts | DrafterCosts) -> Path:
    """Writes costs to the cache atomically and returns the path. Raises ConfigError if it cannot be written."""
    path = cache_folder() / cache_name(type(costs), costs.key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot create {path.parent}: {error.strerror}; set DRAFTPOOL_CACHE") from None
    write(path, dumps_costs(costs))
    return path


def find(kind: type[T], key: ModelKey) -> T | None:
    """The stored costs, or None if there are none. Raises ConfigError for a file that cannot be parsed."""
    path = cache_folder() / cache_name(kind, key)
    if not path.exists():
        return None
    return loads_costs(kind, path.read_text(encoding="utf-8"), str(path))


def find_or_measure(kind: type[T], key: ModelKey, num_rows: int, measure: Callable[[], T]) -> T:
    """The stored costs if they cover so many rows; otherwise measures and stores them.

    The replicas of a node start together and would disturb each other, so one at a time measures, and the others find
    what it stored. Errors with files are logged; then costs are measured at every start.
    """

    def stored() -> T | None:
        try:
            costs = find(kind, key)
        except (OSError, ValueError) as error:
            logger.warning("stored costs cannot be read and are measured again: %s", error)
            return None
        return costs if costs is not None and costs.max_rows >= num_rows else None

    if (costs := stored()) is not None:
        return costs
    with _alone(cache_folder() / "measuring.lock"):
        if (costs := stored()) is not None:
            return costs
        began, costs = time.monotonic(), measure()
        took_s, percent = time.monotonic() - began, 100 * costs.error
        logger.info("measured costs in %.1f s; median error of held-back passes %.0f %%", took_s, percent)
        try:
            keep(costs)
        except ConfigError as error:
            logger.warning("costs cannot be stored and are measured at every start: %s", error)
        return costs


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Holds a file lock that other processes wait for; without a lock if the file cannot be created."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    except OSError:
        yield
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write(path: Path, text: str) -> None:
    """Writes a file atomically. Raises ConfigError if it cannot be written."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; name an existing, writable folder") from None
