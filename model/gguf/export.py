"""Writes a HF checkpoint as a GGUF file, with the hyperparameters and the tokenizer of another GGUF file.

That file holds a model of the same family and shape, which may have more layers.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter, LlamaFileType

from model.batch import CPU
from model.blocks import BlockFormat
from model.checkpoint import Checkpoint, tensor_source
from model.config import DecoderConfig, read_config
from model.ends import HEAD_TOKEN_IDS
from model.gguf.conversion import ROPE_FREQUENCIES, Conversion
from model.gguf.header import GgufHeader
from model.gguf.hf_config import HEAD_KEY, hf_config
from model.gguf.tensors import frequency_factors
from model.gguf.writer import NewTensor, Weights, write_file
from model.load import Progress, check_weights, tensor_shapes
from protocol.errors import ConfigError

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
# What belongs to a checkpoint rather than to its family and shape.
_OWN = frozenset({"eos_token_ids", "bos_token_id", "pad_token_id", "tied_embeddings", HEAD_TOKEN_IDS})


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """depth: layers to write. matrices, embedding: formats, of model.gguf.writer.WRITABLE. full_head: a trimmed head
    gets a row of zeros for each token that it lacks.
    """

    depth: int
    matrices: BlockFormat
    embedding: BlockFormat
    full_head: bool


def export_gguf(directory: Path, like: GgufHeader, out: Path, options: ExportOptions, progress: Progress) -> None:
    """progress: called with the tensors done, and all. Raises ConfigError or UnsupportedModel before it writes."""
    check_weights(directory)
    config = read_config(directory).first_layers(options.depth)
    if config.head_token_ids and tensor_source(directory).shapes.get(_HEAD, ())[:1] != (config.head_size,):
        raise ConfigError(f"{directory} reads its head from another checkpoint; export that one")
    header = first_layers(like, options.depth)
    _refuse_other_shape(directory, config, header)
    token_ids = () if options.full_head else config.head_token_ids
    tensors = list(_tensors(directory, config, header, options))

    def add_own(writer: GGUFWriter) -> None:
        writer.add_name(out.stem)
        writer.add_file_type(_file_type(options.matrices))
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        if token_ids:
            writer.add_key_value(HEAD_KEY, token_ids, GGUFValueType.ARRAY, GGUFValueType.UINT32)

    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, header, add_own, tensors, progress)


def first_layers(header: GgufHeader, depth: int) -> GgufHeader:
    """The same model cut to its first layers. Of the metadata only what describes model and tokenizer is left."""
    prefix = f"{header.metadata.get('general.architecture')}."
    layers = header.metadata.get(f"{prefix}block_count")
    kept = {}
    for key, value in header.metadata.items():
        if key.startswith((prefix, "tokenizer.")) or key == "general.architecture":
            by_layer = key.startswith(prefix) and isinstance(value, list) and len(value) == layers
            kept[key] = value[:depth] if by_layer else value
    return replace(header, metadata=kept | ({} if layers is None else {f"{prefix}block_count": depth}))


def _refuse_other_shape(directory: Path, config: DecoderConfig, header: GgufHeader) -> None:
    """Raises ConfigError unless the header, read back, says what the checkpoint's config says."""
    ours, theirs = _shape(config), _shape(_read_back(header))
    if other := [f"{name} {ours[name]!s:.40} and {theirs[name]!s:.40}" for name in ours if ours[name] != theirs[name]]:
        raise ConfigError(
            f"{directory} and {header.path} differ in {'; '.join(other)}; give the file of the model that the drafter "
            "was made from"
        )


def _read_back(header: GgufHeader) -> DecoderConfig:
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps(hf_config(header, frequency_factors(header)))
        (Path(folder) / "config.json").write_text(text, encoding="utf-8")
        return read_config(Path(folder))


def _shape(config: DecoderConfig) -> dict[str, Any]:
    """A Mistral without windows is a Llama, and its files say so."""
    values = {field.name: getattr(config, field.name) for field in fields(config) if field.name not in _OWN}
    is_llama = config.family == "mistral" and not any(config.windows)
    return values | ({"family": "llama"} if is_llama else {})


def _tensors(directory: Path, config: DecoderConfig, header: GgufHeader, options: ExportOptions) -> Iterator[NewTensor]:
    """The tensors to write. Raises ConfigError if a row is not made of whole blocks."""
    factors = frequency_factors(header)
    if factors is not None:
        values = np.array(factors, np.float32)
        yield NewTensor(ROPE_FREQUENCIES, BlockFormat.F32, values.shape, lambda: values)
    source = _Source(Checkpoint(directory, torch.float32, CPU), Conversion(header), config)
    for name, shape in tensor_shapes(config).items():
        if len(shape) == 1:
            yield source.tensor(name, BlockFormat.F32, shape)
        elif name == _HEAD and options.full_head:
            yield source.full_head(options.matrices)
        else:
            yield source.tensor(name, options.embedding if name == _EMBEDDING else options.matrices, shape)


@dataclass(frozen=True, slots=True)
class _Source:
    """The tensors of a checkpoint as the file has them."""

    checkpoint: Checkpoint
    conversion: Conversion
    config: DecoderConfig

    def tensor(self, name: str, stored: BlockFormat, shape: tuple[int, ...]) -> NewTensor:
        _refuse_broken_blocks(name, stored, shape[-1])
        return NewTensor(self.conversion.gguf_name(name), stored, shape, partial(self._read, name))

    def full_head(self, stored: BlockFormat) -> NewTensor:
        shape = (self.config.vocab_size, self.config.hidden_size)
        return replace(self.tensor(_HEAD, stored, shape), read=self._read_full_head)

    def _read(self, name: str) -> Weights:
        weights: Weights = self.checkpoint.read(name).numpy() + np.float32(self.conversion.offset(name))
        order = self.conversion.gguf_order(name, len(weights))
        return weights if order is None else weights[order]

    def _read_full_head(self) -> Weights:
        config, kept = self.config, self._read(_HEAD)
        if not config.head_token_ids:
            return kept
        whole = np.zeros((config.vocab_size, config.hidden_size), np.float32)
        whole[list(config.head_token_ids)] = kept
        return whole


def _refuse_broken_blocks(name: str, stored: BlockFormat, columns: int) -> None:
    block, _ = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[stored.value]]
    if columns % block:
        raise ConfigError(
            f"{name} has rows of {columns} numbers, which {stored} does not divide into blocks of {block}; choose "
            f"{BlockFormat.BF16}, {BlockFormat.F16} or {BlockFormat.F32}"
        )


def _file_type(matrices: BlockFormat) -> LlamaFileType:
    return LlamaFileType.ALL_F32 if matrices is BlockFormat.F32 else LlamaFileType[f"MOSTLY_{matrices}"]
