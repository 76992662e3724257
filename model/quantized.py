"""Weight matrices of few bits: GGUF's blocks, or int8 by output channel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.blocks import Blocks

_BLOCK = 32  # columns; int8 rows are padded with zeros to whole blocks


@dataclass(frozen=True)
class Int8Rows:
    """A matrix of `shape` (rows, columns).

    data: uint8 (rows, 4 + columns padded to whole blocks): a float32 scale, then int8 weights.
    """

    shape: tuple[int, int]
    data: np.ndarray
    format: str = "int8"

    @classmethod
    def of(cls, weight: Tensor) -> Int8Rows:
        """Rounds a float matrix; the largest absolute weight of a row becomes 127."""
        rows, columns = weight.shape
        weight = weight.float()
        scale = weight.abs().amax(1, keepdim=True) / 127
        data = np.zeros((rows, 4 + columns + -columns % _BLOCK), np.uint8)
        data[:, :4] = scale.numpy().view(np.uint8)
        quants = torch.where(scale > 0, weight / scale, 0.0).round().to(torch.int8)
        data[:, 4 : 4 + columns] = quants.numpy().view(np.uint8)
        return cls((rows, columns), data)

    def dense(self) -> np.ndarray:
        """The same matrix in float32 (rows, columns)."""
        scale = np.ascontiguousarray(self.data[:, :4]).view(np.float32)
        return scale * self.data[:, 4 : 4 + self.shape[1]].view(np.int8)


@dataclass(frozen=True)
class QuantizedMatrix:
    """Parts stacked by rows; each may have a format of its own."""

    parts: tuple[Blocks | Int8Rows, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]

    def dense(self) -> Tensor:
        """The same matrix in float32, [rows, columns]."""
        return torch.from_numpy(np.concatenate([part.dense() for part in self.parts]))

    def rows(self, start: int, stop: int) -> QuantizedMatrix:
        """Rows [start, stop), without a copy."""
        return QuantizedMatrix(tuple(self._cut(start, stop)))

    def _cut(self, start: int, stop: int) -> Iterator[Blocks | Int8Rows]:
        for part in self.parts:
            low, high = max(start, 0), min(stop, part.shape[0])
            if low < high:
                shape = (high - low, part.shape[1])
                data = part.data[low:high]
                yield Int8Rows(shape, data) if isinstance(part, Int8Rows) else Blocks(part.format, shape, data)
            start, stop = start - part.shape[0], stop - part.shape[0]


Matrix = Tensor | QuantizedMatrix


def rows_of(matrix: Matrix, rows: Sequence[int]) -> Matrix:
    """A copy of these rows of a matrix, which has one part if it is quantized."""
    if isinstance(matrix, Tensor):
        return matrix[list(rows)]
    (part,) = matrix.parts
    shape, data = (len(rows), part.shape[1]), part.data[list(rows)]
    own = Int8Rows(shape, data) if isinstance(part, Int8Rows) else Blocks(part.format, shape, data)
    return QuantizedMatrix((own,))


def dense(matrix: Matrix, dtype: torch.dtype) -> Tensor:
    return matrix.dense().to(dtype) if isinstance(matrix, QuantizedMatrix) else matrix
