"""A decoder as a range of layers over a ragged batch.

One pass embeds the flat tokens, runs layers [start, stop) and turns hidden states into logits; a caller may
stop at any layer, look, and go on. Who does the arithmetic is behind one Protocol: plain torch operations
(model/eager.py) or our own kernels (model/native/), from the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from model.batch import RaggedBatch
from model.config import DecoderConfig
from model.kv import PagedKV
from model.rollout import Drafted, Rollout
from protocol.request import SamplingParams


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


class StoredWeights(Protocol):
    """Weights of a checkpoint, each read when it is asked for, so that who keeps them in another form never holds all
    of them twice.
    """

    dtype: torch.dtype
    device: torch.device

    def embedding(self) -> Tensor:
        """[vocab, hidden]."""

    def head(self) -> Tensor | None:
        """[vocab, hidden]; None: the embedding itself."""

    def norm(self) -> Tensor: ...

    def layers(self) -> Iterator[LayerWeights]:
        """First to last, each read when the one before it is done with."""


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """head: [vocab, hidden], the embedding itself when they are tied."""

    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    head: Tensor

    @classmethod
    def read(cls, stored: StoredWeights) -> DecoderWeights:
        embedding, head = stored.embedding(), stored.head()
        return cls(embedding, tuple(stored.layers()), stored.norm(), embedding if head is None else head)


class Decoder(Protocol):
    """is_deterministic: a row's result depends neither on the other rows nor on how many there are, bit for bit."""

    config: DecoderConfig
    is_deterministic: bool

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and KV."""

    @property
    def hidden_dtype(self) -> torch.dtype:
        """Of the hidden states between layers."""

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
        """hidden: [n, hidden], the output of any layer. Returns [len(rows), vocab] float32, valid until
        the next call.
        """

    def step(
        self,
        token_ids: Sequence[int],
        batch: RaggedBatch,
        kv: PagedKV,
        wanted: Sequence[int],
        sampling: Sequence[SamplingParams],
        positions: Sequence[int],
    ) -> list[int]:
        """As model.rollout.step."""

    def roll_out(self, rows: Sequence[Rollout], kv: PagedKV, depth: int, boundary: Tensor | None) -> list[Drafted]:
        """As model.rollout.roll_out."""

    def pick(self, logits: Tensor, sampling: Sequence[SamplingParams], positions: Sequence[int]) -> list[int]:
        """The picked token of each row or NO_PICK (model/sampling.py). positions: the absolute position that each will
        take.
        """

    def pick_with_confidence(
        self, logits: Tensor, sampling: Sequence[SamplingParams], positions: Sequence[int]
    ) -> tuple[list[int], list[float], list[int]]:
        """Picks, a confidence in [0, 1] for each, and the runner-up: the best of the other tokens, -1 if unknown."""
