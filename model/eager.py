"""The decoder in plain torch operations. It runs on any device without a compiler, and is the reference for others.

The arithmetic is that of transformers' modules for each family, with q/k/v and gate/up fused into one matrix each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from model.attention import attend
from model.batch import RaggedBatch
from model.config import DecoderConfig, Rope
from model.decoder import DecoderWeights, LayerWeights
from model.kv import PagedKV
from model.rollout import roll_out, step
from model.rope import rope_angles
from model.sampling import pick, pick_with_confidence
from protocol.request import SamplingParams


def gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATION_FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"silu": F.silu, "gelu": F.gelu, "gelu_pytorch_tanh": gelu_tanh, "relu": F.relu}
)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm over the last dimension, in float32. The product with the weight is in the weight's dtype.

    Llama and similar families round the normalized value to x's dtype first (weights have x's dtype); Gemma does not
    (weights are float32).
    """
    normalized = F.rms_norm(x.to(weight.dtype), x.shape[-1:], None, eps)
    return (normalized * weight).to(x.dtype)


def rotation(rope: Rope, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """positions: [n]. Returns cosines and sines, [n, 1, dim] each; the first half of the sines is negated."""
    cos, sin = rope_angles(rope, positions)
    return torch.cat([cos, cos], 1)[:, None].to(dtype), torch.cat([-sin, sin], 1)[:, None].to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates x: [n, heads, dim], by what `rotation` returns."""
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin


class EagerDecoder:
    """A model.decoder.Decoder in plain torch, for inference only."""

    is_deterministic = False
    step = step
    roll_out = roll_out

    def __init__(self, config: DecoderConfig, weights: DecoderWeights) -> None:
        self.config = config
        self.weights = weights
        ids = config.head_token_ids
        self._token_ids = torch.tensor(ids, device=self.device) if ids else None
        self._activation = ACTIVATION_FUNCTIONS[config.activation]
        # Rounded to the model's dtype before it multiplies, as Gemma was trained.
        scale = config.embedding_scale
        self._embedding_scale = None if scale is None else torch.tensor(scale).to(self.device, self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        return self.weights.embedding.dtype

    @property
    def device(self) -> torch.device:
        return self.weights.embedding.device

    @property
    def hidden_dtype(self) -> torch.dtype:
        return self.dtype

    def new_kv(self, num_slots: int) -> PagedKV:
        shape = (num_slots, self.config.num_kv_heads, self.config.head_dim)
        keys, values = (
            [torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(self.config.num_layers)]
            for _ in range(2)
        )
        return PagedKV(keys, values)

    @torch.inference_mode()
    def embed(self, token_ids: Sequence[int]) -> Tensor:
        ids = torch.tensor(token_ids, dtype=torch.int64, device=self.device)
        hidden = F.embedding(ids, self.weights.embedding)
        return hidden if self._embedding_scale is None else hidden * self._embedding_scale

    @torch.inference_mode()
    def run(self, hidden: Tensor, batch: RaggedBatch, kv: PagedKV, start: int, stop: int) -> Tensor:
        if batch.max_total > self.config.max_positions:
            raise ValueError(
                f"position {batch.max_total - 1} lies beyond the {self.config.max_positions} of this checkpoint"
            )
        ropes = self.config.ropes
        rotations = {rope: rotation(rope, batch.positions, self.dtype) for rope in set(ropes[start:stop])}
        for layer in range(start, stop):
            cos, sin = rotations[ropes[layer]]
            hidden = self._attention(layer, hidden, batch, kv, cos, sin)
            hidden = self._mlp(self.weights.layers[layer], hidden)
        return hidden

    @torch.inference_mode()
    def logits(self, hidden: Tensor, rows: Sequence[int]) -> Tensor:
        logits = F.linear(rms_norm(hidden[rows], self.weights.norm, self.config.norm_eps), self.weights.head)
        if self.config.final_softcap is not None:
            logits = torch.tanh(logits / self.config.final_softcap) * self.config.final_softcap
        return logits.float()

    @torch.inference_mode()
    def pick(self, logits: Tensor, sampling: Sequence[SamplingParams], positions: Sequence[int]) -> list[int]:
        picks: list[int] = pick(logits, sampling, positions, self._token_ids).tolist()
        return picks

    @torch.inference_mode()
    def pick_with_confidence(
        self, logits: Tensor, sampling: Sequence[SamplingParams], positions: Sequence[int]
    ) -> tuple[list[int], list[float]]:
        picks, confidences = pick_with_confidence(logits, sampling, positions, self._token_ids)
        return picks.tolist(), confidences.tolist()

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
