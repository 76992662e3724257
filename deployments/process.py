"""What a replica settles about its own process, once, before it loads a model."""

from __future__ import annotations

import os
from pathlib import Path
from types import MappingProxyType

import torch

from deployments.config import Placement, Weights
from model.config import read_config
from model.kv import bytes_per_slot
from protocol.errors import ConfigError

DTYPES = MappingProxyType({"fp32": torch.float32, "bf16": torch.bfloat16})


def claim(placement: Placement) -> None:
    """Binds every thread that already runs to the configured cores, and sizes torch's thread pool."""
    if placement.cores is not None:
        try:
            for task in Path("/proc/self/task").iterdir():
                os.sched_setaffinity(int(task.name), placement.cores)
        except OSError:
            allowed = sorted(os.sched_getaffinity(0))
            raise ConfigError(f"cores {list(placement.cores)} are not to be had; this machine has {allowed}") from None
    torch.set_num_threads(placement.threads)


def device_of(placement: Placement) -> torch.device:
    return torch.device("cuda" if placement.num_gpus else "cpu")


def num_positions(weights: Weights, directory: Path, dtype: torch.dtype) -> int:
    """How many positions the configured KV memory holds."""
    return (weights.kv_mb << 20) // bytes_per_slot(read_config(directory), dtype)
