"""The header of a GGUF file: its metadata, and where each tensor lies.

gguf.GGUFReader makes an array of every string; on a vocabulary of 150,000 tokens that takes ten seconds.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from model.blocks import BlockFormat
from protocol.errors import ConfigError, UnsupportedModel

MAGIC = b"GGUF"
VERSIONS = (2, 3)
_SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """shape: slowest dimension first. start: bytes from the beginning of the file."""

    name: str
    format: BlockFormat
    shape: tuple[int, ...]
    start: int

    @property
    def row_bytes(self) -> int:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[self.format.value]]
        return self.shape[-1] // block * size

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.shape[:-1], dtype=np.int64)) * self.row_bytes


@dataclass(frozen=True)
class GgufHeader:
    """metadata: values by key; arrays are lists. types: a value's GGUFValueType, and its items' if any."""

    path: Path
    metadata: dict[str, Any]
    types: dict[str, tuple[int, int | None]]
    tensors: dict[str, StoredTensor]


def read_header(path: Path) -> GgufHeader:
    """Raises ConfigError for a damaged file or another kind of file, UnsupportedModel for an unknown block format."""
    try:
        data: npt.NDArray[np.uint8] = np.memmap(path, mode="r")
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    try:
        return _parse(path, data)
    except (struct.error, UnicodeDecodeError, ArithmeticError, TypeError, LookupError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged or cut short ({error}); fetch it again") from None


def _parse(path: Path, data: npt.NDArray[np.uint8]) -> GgufHeader:
    cursor = _Cursor(data)
    if cursor.take(4) != MAGIC:
        raise ConfigError(f"{path} is not a GGUF file: it does not begin with {MAGIC.decode()}")
    if (version := cursor.scalar("I")) not in VERSIONS:
        raise UnsupportedModel(f"{path} has GGUF version {version}; supported are 2 and 3: convert it again")
    num_tensors, num_values = cursor.scalar("Q"), cursor.scalar("Q")
    values = [(cursor.string(), *cursor.typed_value()) for _ in range(num_values)]
    metadata = {key: value for key, value, _ in values}
    found = [_tensor_info(cursor) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", 32)
    base = -(-cursor.at // alignment) * alignment
    tensors = {name: _tensor(path, name, shape, kind, base + start) for name, shape, kind, start in found}
    if any(tensor.start + tensor.num_bytes > len(data) for tensor in tensors.values()):
        raise struct.error(f"tensors lie beyond its {len(data)} bytes")
    return GgufHeader(path, metadata, {key: types for key, _, types in values}, tensors)


def _tensor_info(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name, num_dimensions = cursor.string(), cursor.scalar("I")
    shape = cursor.scalars("Q", num_dimensions)[::-1]
    return name, tuple(shape), cursor.scalar("I"), cursor.scalar("Q")


def _tensor(path: Path, name: str, shape: tuple[int, ...], kind: int, start: int) -> StoredTensor:
    known = kind in list(GGMLQuantizationType)
    label = GGMLQuantizationType(kind).name if known else f"number {kind}"
    if label not in list(BlockFormat):
        raise UnsupportedModel(
            f"{name} of {path} is stored in the format {label}; supported are {', '.join(BlockFormat)}: "
            "take a file in one of these, such as Q4_K_M or Q8_0"
        )
    if shape[-1] % GGML_QUANT_SIZES[GGMLQuantizationType(kind)][0]:
        raise struct.error(f"rows of {name} are no whole blocks")
    return StoredTensor(name, BlockFormat(label), shape, start)


class _Cursor:
    """Reads little-endian values one after another. Raises struct.error at the end of the data."""

    def __init__(self, data: npt.NDArray[np.uint8]) -> None:
        self._data = data
        self.at = 0

    def take(self, size: int) -> bytes:
        if self.at + size > len(self._data):
            raise struct.error("it ends in its header")
        self.at += size
        return self._data[self.at - size : self.at].tobytes()

    def scalars(self, code: str, count: int) -> list[Any]:
        return list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(f"<{code}"))))

    def scalar(self, code: str) -> Any:
        return self.scalars(code, 1)[0]

    def string(self) -> str:
        return self.take(self.scalar("Q")).decode("utf-8")

    def typed_value(self) -> tuple[Any, tuple[int, int | None]]:
        """A value behind its type, and both types."""
        kind, start = self.scalar("I"), self.at
        value = self.value(kind)
        items = int(self._data[start : start + 4].view("<u4")[0]) if kind == GGUFValueType.ARRAY else None
        return value, (kind, items)

    def value(self, kind: int) -> Any:
        if kind == GGUFValueType.STRING:
            return self.string()
        if kind == GGUFValueType.ARRAY:
            item, count = self.scalar("I"), self.scalar("Q")
            code = _SCALARS.get(item)
            return self.scalars(code, count) if code else [self.value(item) for _ in range(count)]
        if kind not in _SCALARS:
            raise struct.error(f"a value of the unknown type {kind}")
        return self.scalar(_SCALARS[GGUFValueType(kind)])
