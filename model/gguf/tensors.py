"""The weights of a GGUF file under the names of a HF checkpoint."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.blocks import Blocks
from model.gguf.conversion import ROPE_FREQUENCIES, Conversion
from model.gguf.header import GgufHeader, StoredTensor, read_header
from protocol.errors import UnsupportedModel

_CHUNK = 1 << 16  # weights that are made dense at a time: what fits a core's cache


class GgufCheckpoint:
    """Weights by HF name, as blocks of the mapped file or dense. llama.cpp's changes are undone: the order of rows in
    Llama's query and key projections, and the one that it adds to Gemma's norms.
    """

    def __init__(self, path: Path) -> None:
        self.header = read_header(path)
        self._data = np.memmap(path, mode="r")
        self._conversion = Conversion(self.header)
        self._stored = _by_hf_name(self.header, self._conversion)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self._stored.items()}

    def blocks(self, name: str) -> Blocks:
        """A matrix as stored in the file; if rows change places, a copy of its blocks. Only for matrices."""
        if len(self._stored[name].shape) != 2:
            raise ValueError(f"{name} is not a matrix; read it dense")
        blocks = _view(self._data, self._stored[name])
        order = self._conversion.hf_order(name, blocks.shape[0])
        return blocks if order is None else blocks.rows(order)

    def dense(self, name: str, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Rows [start, stop) of a matrix, or entries of a vector, in float32, to be written on."""
        tensor = self._stored[name]
        if len(tensor.shape) == 1:
            vector = _view(self._data, tensor).dense().reshape(-1)
            order = self._conversion.hf_order(name, len(vector))
            vector = vector if order is None else vector[order]
            return vector[start:stop] - self._conversion.offset(name)
        order = self._conversion.hf_order(name, tensor.shape[0])
        rows = _view(self._data, tensor).rows(slice(start, stop) if order is None else order[start:stop])
        # As one long row, because gguf dequantizes 16 rows at a time.
        row = Blocks(rows.format, (1, rows.shape[0] * rows.shape[1]), rows.data.reshape(1, -1))
        return np.require(row.dense(), requirements="W").reshape(rows.shape)

    def chunk(self, name: str) -> int:
        """How many rows of a tensor to make dense at a time."""
        shape = self._stored[name].shape
        return max(1, _CHUNK // shape[-1]) if len(shape) > 1 else shape[0]

    def release(self) -> None:
        """Gives the pages that were read back to the system. They are read again when they are needed."""
        whole: mmap.mmap = self._data._mmap  # type: ignore[attr-defined]
        whole.madvise(mmap.MADV_DONTNEED)


def frequency_factors(header: GgufHeader) -> tuple[float, ...] | None:
    """Llama 3's divisors of rotary frequencies, or None."""
    if ROPE_FREQUENCIES not in header.tensors:
        return None
    data = np.memmap(header.path, mode="r")
    return tuple(_view(data, header.tensors[ROPE_FREQUENCIES]).dense().reshape(-1).tolist())


def _view(data: npt.NDArray[np.uint8], tensor: StoredTensor) -> Blocks:
    raw = data[tensor.start : tensor.start + tensor.num_bytes].view(np.ndarray)
    rows = tensor.num_bytes // tensor.row_bytes
    return Blocks(tensor.format, (rows, tensor.shape[-1]), raw.reshape(rows, tensor.row_bytes))


def _by_hf_name(header: GgufHeader, conversion: Conversion) -> dict[str, StoredTensor]:
    named = {conversion.hf_name(name): tensor for name, tensor in header.tensors.items() if name != ROPE_FREQUENCIES}
    if unknown := sorted(tensor.name for name, tensor in named.items() if not name.startswith(("model.", "lm_head."))):
        raise UnsupportedModel(
            f"{header.path} holds tensors that no supported family has: {', '.join(unknown[:3])}; take another model"
        )
    return named
