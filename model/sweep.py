"""Caches as they are in service: between two passes of one model come those of another.

A profile that runs one pass again and again finds the weights in the last-level cache, which a drafter does not that
shares it with a target. So a pass is timed after a read of as much memory as the other model would have read.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

MIB = 1 << 20


def sweeper(num_bytes: int, device: torch.device) -> Callable[[], object]:
    """Reads so many bytes of its own; on a device other than the CPU, whose caches are small, just one number."""
    size = num_bytes // 8 if device.type == "cpu" else 1
    return np.ones(size, np.int64).sum  # by one thread: torch's, still spinning, would slow down what is timed
