"""Packs weights in the order in which the kernels read them. All batch widths share one copy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import DecoderConfig
from model.decoder import LayerWeights, Linear, StoredWeights
from model.kv import padded_dim
from model.native.library import LayerSpec, LinearSpec, ModelSpec
from model.native.memory import Arena
from model.native.quantized import pack_strips, padded_columns
from model.quantized import QuantizedMatrix

ROWS = 1024  # rows of a matrix to pack at a time
ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_pytorch_tanh": 2, "relu": 3}
STRIP = 16


@dataclass(slots=True)
class Packed:
    """A ctypes description of the model, and the tensors that it points to."""

    spec: ModelSpec = field(default_factory=ModelSpec)
    tensors: list[Tensor] = field(default_factory=list)
    arena: Arena = field(default_factory=Arena)

    def linear(self, linear: Linear) -> LinearSpec:
        if isinstance(linear.weight, QuantizedMatrix):
            return self._quantized([linear.weight], linear.weight.shape[0], linear.bias)
        outputs, inputs = linear.weight.shape
        return self._linear(torch.split(linear.weight, ROWS), outputs, inputs, linear.bias, linear.weight.dtype)

    def gated(self, gate_up: Linear) -> LinearSpec:
        """Alternates strips of gate and up, so that both factors of a product are computed together."""
        bias = None if gate_up.bias is None else _mix(*gate_up.bias.chunk(2))
        if isinstance(gate_up.weight, QuantizedMatrix):
            inner = gate_up.weight.shape[0] // 2
            halves = [gate_up.weight.rows(start, start + inner) for start in (0, inner)]
            return self._quantized(halves, 2 * _up_to(inner, STRIP), bias)
        gate, up = gate_up.weight.chunk(2)
        parts = (_mix(*rows) for rows in zip(torch.split(gate, ROWS), torch.split(up, ROWS), strict=True))
        return self._linear(parts, 2 * _up_to(len(gate), STRIP), gate.shape[1], bias, gate.dtype)

    def _linear(
        self, parts: Iterable[Tensor], outputs: int, inputs: int, bias: Tensor | None, dtype: torch.dtype
    ) -> LinearSpec:
        """parts: slices of [outputs, inputs] by rows; all but the last consist of whole strips."""
        step, done = _step(dtype), 0
        kept = self.arena.take((_up_to(outputs, STRIP) // STRIP, _up_to(inputs, 2) // step, STRIP, step), dtype)
        self.tensors.append(kept)
        for part in map(strips, parts):
            kept[done : done + len(part)] = part
            done += len(part)
        padded = None if bias is None else self.floats(_pad(bias, STRIP))
        return LinearSpec(kept.data_ptr(), padded, None, outputs, _up_to(inputs, 2))

    def _quantized(self, matrices: list[QuantizedMatrix], outputs: int, bias: Tensor | None) -> LinearSpec:
        padded = None if bias is None else self.floats(_pad(bias, STRIP))
        return LinearSpec(None, padded, self.strips(matrices), outputs, padded_columns(matrices[0].shape[1]))

    def strips(self, matrices: list[QuantizedMatrix]) -> int:
        """The address of a table of strips, which alternate between the matrices."""
        table, kept = pack_strips(self.arena, matrices)
        self.tensors += [table, *kept]
        return table.data_ptr()

    def floats(self, tensor: Tensor | None) -> int | None:
        return None if tensor is None else self.keep(tensor.float())

    def keep(self, tensor: Tensor) -> int:
        self.tensors.append(self.arena.copy(tensor))
        return self.tensors[-1].data_ptr()


def pack(config: DecoderConfig, weights: StoredWeights) -> Packed:
    """Packs all weights. Each part is read, packed and dropped before the next; the largest first, for a low peak."""
    packed = Packed()
    head = _ends(packed, weights)
    windows = (window or 0 for window in config.windows)
    layers = list(
        map(partial(_layer, packed), weights.layers(), windows)
    )  # a loop variable would keep the last layer alive
    packed.spec = ModelSpec(
        head_size=config.head_size,
        hidden=config.hidden_size,
        inner=config.intermediate_size,
        layers=config.num_layers,
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        dim=padded_dim(config.head_dim),
        activation=ACTIVATIONS[config.activation],
        is_bf16=weights.dtype == torch.bfloat16,
        norm_eps=config.norm_eps,
        query_scale=config.query_scale,
        # Rounded to the model's dtype before it multiplies, as Gemma was trained.
        embedding_scale=torch.tensor(config.embedding_scale or 0.0).to(weights.dtype).item(),
        attention_softcap=config.attention_softcap or 0.0,
        final_softcap=config.final_softcap or 0.0,
        layer=(LayerSpec * len(layers))(*layers),
        norm=packed.floats(weights.norm()),
        token_ids=packed.keep(torch.tensor(config.head_token_ids)) if config.head_token_ids else None,
        **head,
    )
    return packed


def _ends(packed: Packed, weights: StoredWeights) -> dict[str, Any]:
    """Fields of ModelSpec: the head, and the embedding unless it is tied to the head."""
    head = weights.head()
    if head is None:
        return {"head": packed.linear(Linear(weights.embedding(), None))}
    spec = packed.linear(Linear(head, None))
    del head
    embedding = weights.embedding()
    if isinstance(embedding, QuantizedMatrix):
        return {"head": spec, "embedding_blocks": packed.strips([embedding])}
    return {"head": spec, "embedding": packed.keep(embedding)}


def strips(weight: Tensor) -> Tensor:
    """Rearranges [outputs, inputs] to [strips, inputs, 16], for bf16 [strips, inputs / 2, 16, 2]; pads with zeros."""
    outputs, inputs = weight.shape
    step = _step(weight.dtype)
    padded = F.pad(weight, (0, inputs % 2, 0, -outputs % STRIP))
    return padded.view(-1, STRIP, padded.shape[1] // step, step).permute(0, 2, 1, 3)


def _step(dtype: torch.dtype) -> int:
    """The number of adjacent inputs of one output."""
    return 2 if dtype == torch.bfloat16 else 1


def _layer(packed: Packed, weights: LayerWeights, window: int) -> LayerSpec:
    return LayerSpec(
        packed.floats(weights.attention_norm),
        packed.floats(weights.qk_norm),
        packed.floats(weights.attention_post_norm),
        packed.floats(weights.mlp_norm),
        packed.floats(weights.mlp_post_norm),
        packed.linear(weights.qkv),
        packed.linear(weights.out),
        packed.gated(weights.gate_up),
        packed.linear(weights.down),
        window,
    )


def _mix(gate: Tensor, up: Tensor) -> Tensor:
    parts = [_pad(half, STRIP).reshape(-1, STRIP, *half.shape[1:]) for half in (gate, up)]
    return torch.stack(parts, 1).flatten(0, 2)


def _up_to(length: int, multiple: int) -> int:
    return length + -length % multiple


def _pad(tensor: Tensor, multiple: int) -> Tensor:
    """Pads the first dimension with zeros to a multiple."""
    missing = -len(tensor) % multiple
    if not missing:
        return tensor.contiguous()
    return torch.cat([tensor, tensor.new_zeros((missing, *tensor.shape[1:]))])
