"""Copies a GGUF file with fewer rows in its LM head. Blocks stay as they are, and so do the scores of what is kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
from gguf import GGUFValueType, GGUFWriter

from model.gguf.export import first_layers
from model.gguf.header import GgufHeader, StoredTensor
from model.gguf.hf_config import HEAD_KEY
from model.gguf.writer import NewTensor, Stored, write_file
from model.load import Progress

_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"


def trim_gguf(header: GgufHeader, out: Path, token_ids: Sequence[int], progress: Progress) -> None:
    """token_ids: ascending. progress: called with the tensors done, and all."""
    data = np.memmap(header.path, mode="r")
    kept = [_copy(data, tensor) for name, tensor in header.tensors.items() if name != _HEAD]
    whole = header.tensors.get(_HEAD, header.tensors[_EMBEDDING])
    head = NewTensor(_HEAD, whole.format, (len(token_ids), whole.shape[1]), lambda: _rows(data, whole)[list(token_ids)])

    def add_own(writer: GGUFWriter) -> None:
        writer.add_name(out.stem)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_key_value(HEAD_KEY, list(token_ids), GGUFValueType.ARRAY, GGUFValueType.UINT32)

    metadata = header.metadata
    depth = metadata[f"{metadata['general.architecture']}.block_count"]
    write_file(out, first_layers(header, depth), add_own, [*kept, head], progress)


def _copy(data: Stored, tensor: StoredTensor) -> NewTensor:
    return NewTensor(tensor.name, tensor.format, tensor.shape, lambda: _rows(data, tensor))


def _rows(data: Stored, tensor: StoredTensor) -> Stored:
    """[rows, bytes of a row]"""
    rows: Stored = data[tensor.start : tensor.start + tensor.num_bytes].view(np.ndarray).reshape(-1, tensor.row_bytes)
    return rows
