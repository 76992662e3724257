"""A weight matrix in one of GGUF's block formats, as it lies in the file."""

from dataclasses import dataclass
from enum import StrEnum

import gguf
import numpy as np


class BlockFormat(StrEnum):
    """The formats that we read. A name is gguf's own name of the type."""

    F32 = "F32"
    F16 = "F16"
    BF16 = "BF16"
    Q8_0 = "Q8_0"
    Q4_0 = "Q4_0"
    Q4_1 = "Q4_1"
    Q5_0 = "Q5_0"
    Q5_1 = "Q5_1"
    Q4_K = "Q4_K"
    Q5_K = "Q5_K"
    Q6_K = "Q6_K"


@dataclass(frozen=True)
class Blocks:
    """A matrix of `shape` (rows, columns); `data` holds its blocks, uint8 (rows, bytes of a row), often a view of a mapped file."""

    format: BlockFormat
    shape: tuple[int, int]
    data: np.ndarray

    def dense(self) -> np.ndarray:
        """The same matrix in float32 (rows, columns)."""
        kind = gguf.GGMLQuantizationType[self.format.value]
        return gguf.quants.dequantize(self.data, kind).astype(np.float32, copy=False).reshape(self.shape)

    def rows(self, index: np.ndarray) -> "Blocks":
        """The rows of `index`, in its order."""
        return Blocks(self.format, (len(index), self.shape[1]), self.data[index])
