"""The Decoder protocol: runs a range of layers over a ragged batch.

A pass embeds the flat tokens, runs layers [start, stop) and turns hidden states into logits. A caller may stop at any
layer, read the hidden states, and continue. There are two implementations over the same weights: plain torch
(model/eager.py) and native kernels (model/native/).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from model.batch import RaggedBatch
from model.config import DecoderConfig
from model.kv import PagedKV
from model.quantized import Matrix, dense
from model.rollout import Drafted, Rollout
from protocol.request import SamplingParams


class Linear(NamedTuple):
    weight: Matrix  # [out, in]
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, dense(self.weight, x.dtype), self.bias)


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

    def dense(self, dtype: torch.dtype) -> LayerWeights:
        """The same weights without quantized matrices."""
        qkv, out, gate_up, down = (
            Linear(dense(own.weight, dtype), own.bias) for own in (self.qkv, self.out, self.gate_up, self.down)
        )
        return replace(self, qkv=qkv, out=out, gate_up=gate_up, down=down)


class StoredWeights(Protocol):
    """The weights of a checkpoint, each read on request, so that repacking them never holds all weights twice."""

    dtype: torch.dtype
    device: torch.device

    def embedding(self) -> Matrix:
        """[vocab, hidden]."""

    def head(self) -> Matrix | None:
        """[head_size, hidden]; None: the embedding itself."""

    def norm(self) -> Tensor: ...

    def layers(self) -> Iterator[LayerWeights]:
        """The layers in order; each is read when the iterator advances to it."""


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """head: [head_size, hidden], the embedding itself when they are tied."""

    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    head: Tensor

    @classmethod
    def read(cls, stored: StoredWeights) -> DecoderWeights:
        """Quantized matrices are made dense."""
        dtype, head = stored.dtype, stored.head()
        embedding = dense(stored.embedding(), dtype)
        layers = tuple(layer.dense(dtype) for layer in stored.layers())
        return cls(embedding, layers, stored.norm(), embedding if head is None else dense(head, dtype))


class Decoder(Protocol):
    """is_deterministic: a row's result depends neither on the other rows nor on how many there are, bit for bit."""

    config: DecoderConfig
    is_deterministic: bool

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights and KV."""

    @property
    def hidden_dtype(self) -> torch.dtype:
        """The dtype of hidden states between layers."""

    @property
    def device(self) -> torch.device: ...

    def new_kv(self, num_slots: int) -> PagedKV: ...

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """Returns [n, hidden], valid until the next call."""

    def run(self, hidden: Tensor, batch: RaggedBatch, kv: PagedKV, start: int, stop: int) -> Tensor:
        """hidden: [n, hidden], the input of layer `start`, which may be overwritten. Returns the output of layer
        stop - 1; writes these layers' KV.
        """

    def logits(self, hidden: Tensor, rows: Sequence[int]) -> Tensor:
        """hidden: [n, hidden], the output of any layer. Returns [len(rows), head_size] float32, valid until
        the next call; the columns are the tokens of config.head_token_ids.
        """

    def step(
        self,
        token_ids: Sequence[int],
        batch: RaggedBatch,
        kv: PagedKV,
        wanted: Sequence[int],
        sampling: Sequence[SamplingParams],
        positions: Sequence[int],
    ) -> tuple[list[int], Tensor]:
        """See model.rollout.step."""

    def roll_out(self, rows: Sequence[Rollout], kv: PagedKV, depth: int, boundary: Tensor | None) -> list[Drafted]:
        """As model.rollout.roll_out."""

    def pick(self, logits: Tensor, sampling: Sequence[SamplingParams], positions: Sequence[int]) -> list[int]:
        """The picked token of each row, or NO_PICK (model/sampling.py). positions: absolute positions of the picks."""

    def pick_with_confidence(
        self, logits: Tensor, sampling: Sequence[SamplingParams], positions: Sequence[int]
    ) -> tuple[list[int], list[float]]:
        """Picks, and their confidences in [0, 1]."""
