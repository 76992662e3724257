"""Writes a GGUF file tensor by tensor, so that no more than one of them is in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

from model.blocks import BlockFormat
from model.gguf.header import GgufHeader

Weights = npt.NDArray[np.float32]
WRITABLE = tuple(BlockFormat[name] for name in ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "BF16", "F16", "F32"))


@dataclass(frozen=True, slots=True)
class NewTensor:
    """format: one of WRITABLE, whose blocks divide the rows. read: gives its numbers in the order of the file."""

    name: str
    format: BlockFormat
    shape: tuple[int, ...]
    read: Callable[[], Weights]

    @property
    def kind(self) -> GGMLQuantizationType:
        return GGMLQuantizationType[self.format.value]

    @property
    def num_bytes(self) -> int:
        return prod(gguf.quant_shape_to_byte_shape(self.shape, self.kind))


def write_file(
    path: Path,
    header: GgufHeader,
    extra: Callable[[GGUFWriter], None],
    tensors: Sequence[NewTensor],
    progress: Callable[[int, int], None],
) -> None:
    """The metadata of `header` and what `extra` adds, and the tensors. The file appears when it is complete.

    progress: called with the tensors done, and all.
    """
    partial = path.with_name(f"{path.name}.partial")
    writer = GGUFWriter(partial, header.metadata["general.architecture"])
    try:
        _add_metadata(writer, header)
        extra(writer)
        for tensor in tensors:
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.num_bytes, tensor.kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for done, tensor in enumerate(tensors, 1):
            writer.write_tensor_data(gguf.quants.quantize(tensor.read(), tensor.kind))
            progress(done, len(tensors))
        writer.close()
        os.replace(partial, path)
    finally:
        writer.close()
        partial.unlink(missing_ok=True)


def _add_metadata(writer: GGUFWriter, header: GgufHeader) -> None:
    """Empty arrays are left out, since they have no meaning and gguf does not write them."""
    for key, value in header.metadata.items():
        kind, items = header.types[key]
        if key != "general.architecture" and value != []:
            writer.add_key_value(key, value, GGUFValueType(kind), None if items is None else GGUFValueType(items))
