"""Settings of a replica's process (cores, threads, device) and the size of its KV cache."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

import torch

from deployments.config import AppConfig
from deployments.config_replica import Placement, Weights
from drafters.nested import bytes_per_position
from model.config import read_config
from model.cores import usable_cores
from model.execution import SLOWER, why_not_native
from model.kv import bytes_per_slot
from protocol.errors import ConfigError

logger = logging.getLogger(__name__)

DTYPES = MappingProxyType({"fp32": torch.float32, "bf16": torch.bfloat16})


def pin_process(placement: Placement) -> None:
    """Pins all threads of this process to the configured cores, and sets the number of torch's threads.

    The number is limited to the cores that the process may use. Raises ConfigError if the cores are not available.
    """
    if placement.cores is not None:
        try:
            for task in Path("/proc/self/task").iterdir():
                with suppress(ProcessLookupError):  # the thread has just ended
                    os.sched_setaffinity(int(task.name), placement.cores)
        except OSError:
            allowed = sorted(os.sched_getaffinity(0))
            raise ConfigError(f"cores {list(placement.cores)} are not available; this machine has {allowed}") from None
    threads = min(placement.threads, usable_cores())
    if threads < placement.threads:
        logger.warning("using %d threads instead of %d: affinity and cgroups allow no more", threads, placement.threads)
    torch.set_num_threads(threads)


@contextmanager
def pinned_process(placement: Placement) -> Iterator[None]:
    """Pins this process as a replica's would be, and restores it at the end."""
    before = {"cores": tuple(sorted(os.sched_getaffinity(0))), "threads": torch.get_num_threads()}
    pin_process(placement)
    try:
        yield
    finally:
        pin_process(placement.model_copy(update=before))


def device_of(placement: Placement) -> torch.device:
    return torch.device("cuda" if placement.num_gpus else "cpu")


def explain_slow_execution(config: AppConfig) -> str | None:
    """Why models with execution: auto cannot use native kernels on this machine, or None if they can.

    Compiles the kernels, so that replicas on this machine find them.
    """
    models = (*config.targets, *((config.pool,) if config.pool else ()))
    if not any(model.execution == "auto" and not model.num_gpus for model in models):
        return None
    why = why_not_native()
    return why and f"{why}; {SLOWER}"


def target_positions(weights: Weights, directory: Path) -> int:
    """The number of positions that a target's KV cache holds."""
    return (weights.kv_mb << 20) // bytes_per_slot(read_config(directory), DTYPES[weights.dtype])


def pool_positions(weights: Weights, directory: Path) -> int:
    """The number of positions that a draft replica's KV cache holds. Raises ConfigError for a damaged manifest."""
    try:
        return (weights.kv_mb << 20) // bytes_per_position(directory, DTYPES[weights.dtype])
    except ValueError as error:
        raise ConfigError(str(error)) from None


def check_pages(key: str, weights: Weights, num_positions: int) -> None:
    """Raises ConfigError unless the KV cache holds at least one page."""
    if num_positions < weights.page_size:
        raise ConfigError(
            f"{key}: kv_mb {weights.kv_mb} holds {num_positions} positions, less than one page of page_size "
            f"{weights.page_size}; raise kv_mb"
        )
