"""A weight matrix in one of GGUF's block formats, as stored in the file."""

from dataclasses import dataclass
from enum import StrEnum

import gguf
import numpy as np
import numpy.typing as npt


class BlockFormat(StrEnum):
    """The formats that we read, under gguf's own names."""

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
    """A matrix of `shape` (rows, columns).

    data: its blocks, uint8 (rows, bytes of a row), often a view of a mapped file.
    """

    format: BlockFormat
    shape: tuple[int, int]
    data: npt.NDArray[np.uint8]

    def dense(self) -> npt.NDArray[np.float32]:
        """The same matrix in float32 (rows, columns)."""
        kind = gguf.GGMLQuantizationType[self.format.value]
        return gguf.quants.dequantize(self.data, kind).astype(np.float32, copy=False).reshape(self.shape)

    def rows(self, index: npt.NDArray[np.intp] | slice) -> "Blocks":
        """The rows of `index`, in its order."""
        data = self.data[index]
        return Blocks(self.format, (len(data), self.shape[1]), data)
