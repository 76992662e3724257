"""Memory in huge pages, if the system has them. With 4 KiB pages, a pass loses much time to TLB misses."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

HUGE_PAGE = 2 << 20
ALIGNMENT = 64
STAGGER = 65 * 64  # bytes between two tensors of `staggered`


def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor of zeros that takes no physical memory until it is written."""
    num_elements = math.prod(shape)
    if not num_elements:
        return torch.zeros(shape, dtype=dtype)
    return torch.frombuffer(_region(num_elements * dtype.itemsize), dtype=dtype, count=num_elements).view(shape)


class Block:
    """A growing array, refilled for every call. Its address is cached."""

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._grow(np.dtype(dtype), 64)

    def holding(self, values: Sequence[int]) -> int:
        """Copies the values into the array and returns its address."""
        self.take(len(values))[:] = values
        return self.address

    def take(self, length: int) -> npt.NDArray[Any]:
        """The first `length` entries, with their old contents."""
        if length > len(self._array):
            self._grow(self._array.dtype, 2 * length)
        return self._array[:length]

    def _grow(self, dtype: np.dtype[Any], length: int) -> None:
        self._array = np.zeros(length, dtype)
        self.address = address(self._array)


def address(array: npt.NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])


@dataclass(slots=True)
class Arena:
    """Allocates tensors one after another from regions of at least `chunk` bytes."""

    chunk: int = 64 << 20
    _free: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of zeros."""
        size = math.prod(shape) * dtype.itemsize
        padded = -(-size // ALIGNMENT) * ALIGNMENT
        if padded > len(self._free):
            self._free = zeros((max(padded, self.chunk),), torch.uint8)
        taken, self._free = self._free[:size], self._free[padded:]
        return taken.view(dtype).view(shape)

    def copy(self, tensor: Tensor) -> Tensor:
        return self.take(tuple(tensor.shape), tensor.dtype).copy_(tensor)


def staggered(count: int, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """Tensors of zeros that begin at different sets of the caches. Stores to one set took microseconds each."""
    arena = Arena(count * (math.prod(shape) * dtype.itemsize + STAGGER))

    def one() -> Tensor:
        arena.take((STAGGER,), torch.uint8)
        return arena.take(shape, dtype)

    return [one() for _ in range(count)]


def release_freed_memory() -> None:
    """Makes glibc return freed memory to the system."""
    with contextlib.suppress(AttributeError):  # another libc
        ctypes.CDLL(None).malloc_trim(0)


def _region(size: int) -> mmap.mmap:
    region = mmap.mmap(-1, -(-size // HUGE_PAGE) * HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError, AttributeError):  # a system without huge pages
        region.madvise(mmap.MADV_HUGEPAGE)
    return region
