"""Packs matrices of few bits into the strips that the kernels read (blocks.h). Nothing dense is kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from model.blocks import Blocks
from model.native.library import library, num_threads, thread_pool
from model.native.memory import Arena, address
from model.quantized import Int8Rows, QuantizedMatrix
from protocol.errors import UnsupportedModel

STRIP = 16
# The numbers of blocks.h.
FORMATS = {"int8": 1, "Q8_0": 2, "Q4_0": 3, "Q4_1": 4, "Q5_0": 5, "Q5_1": 6, "Q4_K": 7, "Q5_K": 8, "Q6_K": 9}
_STRIP_SPEC = np.dtype([("panels", np.uint64), ("format", np.int64)])


def pack_strips(arena: Arena, matrices: Sequence[QuantizedMatrix]) -> tuple[Tensor, list[Tensor]]:
    """Packs matrices of as many strips each, and alternates their strips.

    Returns the table of strips, bytes [strips * 16], and the memory that it points to. Raises UnsupportedModel.
    """
    columns = padded_columns(matrices[0].shape[1])
    joined = [_join(matrix) for matrix in matrices]
    table = np.zeros((sum(map(_num_strips, joined[0])), len(matrices)), _STRIP_SPEC)
    kept, done = [], 0
    for parts in zip(*joined, strict=True):
        count = _num_strips(parts[0])
        sizes = [library().dp_strip_bytes(FORMATS[part.format], columns) for part in parts]
        kept.append(arena.take((count * sum(sizes),), torch.uint8))
        for own, part in enumerate(parts):
            start = kept[-1].data_ptr() + sum(sizes[:own])
            _pack(part, columns, start, sum(sizes))
            rows = table[done : done + count, own]
            rows["panels"] = start + sum(sizes) * np.arange(count, dtype=np.uint64)
            rows["format"] = FORMATS[part.format]
        done += count
    return torch.from_numpy(table.view(np.uint8).reshape(-1)), kept


def padded_columns(columns: int) -> int:
    """Whole blocks of 32."""
    return columns + -columns % 32


def _pack(part: Blocks | Int8Rows, columns: int, start: int, step: int) -> None:
    data = np.ascontiguousarray(part.data)
    library().dp_pack(
        *(thread_pool(num_threads()), FORMATS[part.format], address(data), data.shape[1]),
        *(part.shape[0], columns, start, step),
    )


def _join(matrix: QuantizedMatrix) -> list[Blocks | Int8Rows]:
    """The parts, of whole strips all but the last."""
    if all(part.shape[0] % STRIP == 0 for part in matrix.parts[:-1]):
        return list(matrix.parts)
    formats = sorted({str(part.format) for part in matrix.parts})
    if len(formats) > 1:
        raise UnsupportedModel(f"{' and '.join(formats)} side by side need rows in multiples of {STRIP}")
    first, data = matrix.parts[0], np.concatenate([part.data for part in matrix.parts])
    return [Int8Rows(matrix.shape, data) if isinstance(first, Int8Rows) else Blocks(first.format, matrix.shape, data)]


def _num_strips(part: Blocks | Int8Rows) -> int:
    return -(-part.shape[0] // STRIP)
