"""Weights in the order in which the kernels read them, held once whatever the widths that use them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.config import DecoderConfig
from model.decoder import DecoderWeights, LayerWeights, Linear
from model.kv import padded_dim
from model.native.library import LayerSpec, LinearSpec, ModelSpec
from model.native.memory import Arena

ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_pytorch_tanh": 2, "relu": 3}
STRIP = 16


@dataclass(slots=True)
class Packed:
    """A ctypes description of the model, and the tensors that it points into."""

    spec: ModelSpec = field(default_factory=ModelSpec)
    tensors: list[Tensor] = field(default_factory=list)
    arena: Arena = field(default_factory=Arena)

    def linear(self, linear: Linear) -> LinearSpec:
        outputs, inputs = linear.weight.shape
        bias = None if linear.bias is None else self.floats(_pad(linear.bias, STRIP))
        return LinearSpec(self.keep(strips(linear.weight)), bias, outputs, inputs + inputs % 2)

    def floats(self, tensor: Tensor | None) -> int | None:
        return None if tensor is None else self.keep(tensor.float())

    def keep(self, tensor: Tensor) -> int:
        self.tensors.append(self.arena.copy(tensor))
        return self.tensors[-1].data_ptr()


def pack(config: DecoderConfig, weights: DecoderWeights) -> Packed:
    packed = Packed()
    layers = [_layer(packed, layer, window or 0) for layer, window in zip(weights.layers, config.windows, strict=True)]
    tied = weights.head.data_ptr() == weights.embedding.data_ptr()
    packed.spec = ModelSpec(
        vocab=config.vocab_size,
        hidden=config.hidden_size,
        inner=config.intermediate_size,
        layers=config.num_layers,
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        dim=padded_dim(config.head_dim),
        activation=ACTIVATIONS[config.activation],
        is_bf16=weights.embedding.dtype == torch.bfloat16,
        norm_eps=config.norm_eps,
        query_scale=config.query_scale,
        # Rounded to the model's dtype before it multiplies, as Gemma was trained.
        embedding_scale=torch.tensor(config.embedding_scale or 0.0).to(weights.embedding.dtype).item(),
        attention_softcap=config.attention_softcap or 0.0,
        final_softcap=config.final_softcap or 0.0,
        layer=(LayerSpec * len(layers))(*layers),
        norm=packed.floats(weights.norm),
        head=packed.linear(Linear(weights.head, None)),
        embedding=None if tied else packed.keep(weights.embedding),
    )
    return packed


def strips(weight: Tensor) -> Tensor:
    """[outputs, inputs] to [strips, inputs, 16], in bf16 to [strips, inputs / 2, 16, 2]; padded with zeros."""
    padded = _pad(_pad(weight.T, 2).T, STRIP)
    step = 2 if weight.dtype == torch.bfloat16 else 1
    return padded.view(-1, STRIP, padded.shape[1] // step, step).permute(0, 2, 1, 3).contiguous()


def _layer(packed: Packed, weights: LayerWeights, window: int) -> LayerSpec:
    return LayerSpec(
        packed.floats(weights.attention_norm),
        packed.floats(weights.qk_norm),
        packed.floats(weights.attention_post_norm),
        packed.floats(weights.mlp_norm),
        packed.floats(weights.mlp_post_norm),
        packed.linear(weights.qkv),
        packed.linear(weights.out),
        packed.linear(_in_turn(weights.gate_up)),
        packed.linear(weights.down),
        window,
    )


def _in_turn(gate_up: Linear) -> Linear:
    """A strip of the gate, then one of what it gates, so that both are at hand when they are multiplied."""
    weight = _mix(gate_up.weight)
    return Linear(weight, None if gate_up.bias is None else _mix(gate_up.bias))


def _mix(both: Tensor) -> Tensor:
    gate, up = (_pad(half, STRIP) for half in both.chunk(2))
    return torch.stack([part.reshape(-1, STRIP, *part.shape[1:]) for part in (gate, up)], 1).flatten(0, 2)


def _pad(tensor: Tensor, multiple: int) -> Tensor:
    """Zeros after the last entry of the first dimension, up to a multiple."""
    missing = -len(tensor) % multiple
    if not missing:
        return tensor.contiguous()
    return torch.cat([tensor, tensor.new_zeros((missing, *tensor.shape[1:]))])
