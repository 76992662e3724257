"""Evicts a model's weights from CPU caches between timed passes.

A profile that repeats one pass finds the weights in the last-level cache. In service, the other model's pass comes in
between and evicts them. So each timed pass follows a read of as much memory as the other model reads.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

MIB = 1 << 20


def sweeper(num_bytes: int, device: torch.device) -> Callable[[], object]:
    """A function that reads num_bytes of memory. On devices other than the CPU it reads almost nothing."""
    size = num_bytes // 8 if device.type == "cpu" else 1
    return np.ones(size, np.int64).sum  # numpy, because torch's spinning threads would slow down the timed pass
