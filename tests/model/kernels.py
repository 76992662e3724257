"""What the tests of the native kernels share."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from model.blocks import Blocks
from model.decoder import Decoder
from model.execution import Execution, warn_once, why_not_native
from model.load import load_decoder
from model.native.library import LinearSpec, library, thread_pool
from model.native.memory import Arena
from model.native.quantized import pack_strips, padded_columns
from model.quantized import Int8Rows, QuantizedMatrix
from tests.model.families import make_checkpoint

Floats = npt.NDArray[np.float32]


class Product:
    """x @ matrix.T by the kernels, for a matrix of blocks."""

    def __init__(self, *parts: Blocks | Int8Rows) -> None:
        self._matrix = QuantizedMatrix(parts)
        self._table, self._kept = pack_strips(Arena(), [self._matrix])

    def __call__(self, x: Floats, threads: int = 2) -> Floats:
        outputs, inputs = self._matrix.shape
        x = np.pad(x, ((0, 0), (0, padded_columns(inputs) - inputs)))
        found = np.full((len(x), outputs), np.nan, np.float32)
        spec = LinearSpec(None, None, self._table.data_ptr(), outputs, x.shape[1])
        library().dp_product(thread_pool(threads), ctypes.byref(spec), x.ctypes.data, len(x), found.ctypes.data)
        return found


def load(name: str, directory: Path, dtype: torch.dtype, execution: Execution = Execution.NATIVE) -> Decoder:
    return load_decoder(make_checkpoint(name, directory, seed=3), dtype=dtype, execution=execution)


def forget_library() -> None:
    library.cache_clear()
    thread_pool.cache_clear()
    why_not_native.cache_clear()
    warn_once.cache_clear()
