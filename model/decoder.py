"""A decoder as a range of layers over a ragged batch.

One pass embeds the flat tokens, runs layers [start, stop) and turns hidden states into logits; a caller may
stop at any layer, look, and go on. The arithmetic is that of transformers' own modules, family by family,
with q/k/v and gate/up each read as one matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.attention import attend
from model.batch import RaggedBatch
from model.config import DecoderConfig, Rope
from model.kv import PagedKV


def gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATION_FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"silu": F.silu, "gelu": F.gelu, "gelu_pytorch_tanh": gelu_tanh, "relu": F.relu}
)


class Linear(NamedTuple):
    weight: Tensor  # [out, in]
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """qkv: [(heads + 2 kv_heads) * dim, hidden]. qk_norm: [heads + kv_heads, dim]. gate_up: [2 inner, hidden]."""

    attention_norm: Tensor
    qkv: Linear
    qk_norm: Tensor | None
    out: Linear
    attention_post_norm: Tensor | None
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear
    mlp_post_norm: Tensor | None


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """head: [vocab, hidden], the embedding itself when they are tied."""

    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    head: Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Over the last dimension, in float32. The product with the weight is taken in the weight's dtype.

    Llama's kin round the normalized value to x's dtype first (weights in x's dtype); Gemma does not (float32).
    """
    normalized = F.rms_norm(x.to(weight.dtype), x.shape[-1:], None, eps)
    return (normalized * weight).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: [n, heads, dim]; cos, sin: [n, 1, dim]. The first half of sin is negated, in place of rotate_half's minus."""
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin


class RopeTable:
    """cos and sin of all positions up to the longest seen, computed in float32 and kept in the model's dtype."""

    def __init__(self, rope: Rope, max_positions: int, dtype: torch.dtype, device: torch.device) -> None:
        self._rope = rope
        self._max_positions = max_positions
        self._dtype = dtype
        self._device = device
        self._table = self._build(min(1024, max_positions))

    def at(self, positions: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """positions: [n], all below `length`. Returns cos and sin, [n, 1, dim] each."""
        if length > self._max_positions:
            raise ValueError(f"position {length - 1} lies beyond the {self._max_positions} of this checkpoint")
        if length > len(self._table):
            self._table = self._build(min(2 * length, self._max_positions))
        cos, sin = self._table.index_select(0, positions).unbind(1)
        return cos[:, None], sin[:, None]

    def _build(self, length: int) -> Tensor:
        """[length, 2, dim]."""
        frequencies = torch.tensor(self._rope.inverse_frequencies, dtype=torch.float32, device=self._device)
        angles = torch.arange(length, dtype=torch.float32, device=self._device)[:, None] * frequencies
        cos, sin = angles.cos() * self._rope.scaling, angles.sin() * self._rope.scaling
        return torch.stack([torch.cat([cos, cos], 1), torch.cat([-sin, sin], 1)], 1).to(self._dtype)


class Decoder:
    """Inference only; call under torch.inference_mode()."""

    def __init__(self, config: DecoderConfig, weights: DecoderWeights) -> None:
        self.config = config
        self.weights = weights
        self._activation = ACTIVATION_FUNCTIONS[config.activation]
        self._tables = {
            rope: RopeTable(rope, config.max_positions, self.dtype, self.device) for rope in set(config.ropes)
        }
        # Rounded to the model's dtype before it multiplies, as Gemma was trained.
        scale = config.embedding_scale
        self._embedding_scale = None if scale is None else torch.tensor(scale).to(self.device, self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        return self.weights.embedding.dtype

    @property
    def device(self) -> torch.device:
        return self.weights.embedding.device

    def embed(self, token_ids: Tensor) -> Tensor:
        """token_ids: [n]. Returns [n, hidden]."""
        hidden = F.embedding(token_ids, self.weights.embedding)
        return hidden if self._embedding_scale is None else hidden * self._embedding_scale

    def run(self, hidden: Tensor, batch: RaggedBatch, kv: PagedKV, start: int, stop: int) -> Tensor:
        """hidden: [n, hidden], the input of layer `start`. Returns the output of layer stop - 1; writes their KV."""
        tables = {
            rope: self._tables[rope].at(batch.positions, batch.max_total) for rope in set(self.config.ropes[start:stop])
        }
        for layer in range(start, stop):
            cos, sin = tables[self.config.ropes[layer]]
            hidden = self._attention(layer, hidden, batch, kv, cos, sin)
            hidden = self._mlp(self.weights.layers[layer], hidden)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: [m, hidden], the output of any layer. Returns [m, vocab] float32."""
        logits = F.linear(rms_norm(hidden, self.weights.norm, self.config.norm_eps), self.weights.head)
        if self.config.final_softcap is not None:
            logits = torch.tanh(logits / self.config.final_softcap) * self.config.final_softcap
        return logits.float()

    def _attention(
        self, layer: int, hidden: Tensor, batch: RaggedBatch, kv: PagedKV, cos: Tensor, sin: Tensor
    ) -> Tensor:
        config, weights = self.config, self.weights.layers[layer]
        x = rms_norm(hidden, weights.attention_norm, config.norm_eps)
        qkv = weights.qkv(x).view(len(hidden), -1, config.head_dim)
        qk, values = qkv.split_with_sizes((config.num_heads + config.num_kv_heads, config.num_kv_heads), 1)
        if weights.qk_norm is not None:
            qk = rms_norm(qk, weights.qk_norm, config.norm_eps)
        query, keys = rotate(qk, cos, sin).split_with_sizes((config.num_heads, config.num_kv_heads), 1)
        kv.write(layer, batch.slots, keys, values)
        x = attend(
            query,
            kv.keys[layer],
            kv.values[layer],
            batch,
            scale=config.query_scale,
            window=config.windows[layer],
            softcap=config.attention_softcap,
        )
        x = weights.out(x.flatten(1))
        if weights.attention_post_norm is not None:
            x = rms_norm(x, weights.attention_post_norm, config.norm_eps)
        return hidden + x

    def _mlp(self, weights: LayerWeights, hidden: Tensor) -> Tensor:
        x = rms_norm(hidden, weights.mlp_norm, self.config.norm_eps)
        gate, up = weights.gate_up(x).chunk(2, -1)
        x = weights.down(self._activation(gate) * up)
        if weights.mlp_post_norm is not None:
            x = rms_norm(x, weights.mlp_post_norm, self.config.norm_eps)
        return hidden + x
