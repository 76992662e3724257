"""A Decoder by our own kernels: one call a pass, whatever the lengths, with results that depend on the row alone.

Hidden states are float32 between layers in either dtype, so a pass may stop at any layer, keep what it has and go on
without changing a bit.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.batch import CPU, RaggedBatch
from model.config import DecoderConfig, Rope
from model.decoder import DecoderWeights
from model.kv import PagedKV, padded_dim
from model.native.library import BatchSpec, addresses, library, num_threads, thread_pool
from model.native.memory import zeros
from model.native.weights import pack
from model.rope import rope_table
from model.sampling import filter_logits
from protocol.request import SamplingParams

_PICKING = np.dtype([("temperature", np.float32), ("seed", np.uint64), ("position", np.int64)], align=True)
_PICK = np.dtype([("token", np.int64), ("confidence", np.float64)])


class NativeDecoder:
    """A model.decoder.Decoder on the CPU. Not thread-safe: its buffers are reused from pass to pass."""

    is_deterministic = True
    hidden_dtype = torch.float32
    device = CPU

    def __init__(self, config: DecoderConfig, weights: DecoderWeights) -> None:
        """Raises model.native.compiler.CompilerError where the kernels cannot be compiled."""
        self.config = config
        self.dtype = weights.embedding.dtype
        self._library = library()
        self._pool = thread_pool(num_threads())
        self._packed = pack(config, weights)
        self._model = self._library.dp_model(ctypes.byref(self._packed.spec), self._pool)
        weakref.finalize(self, self._library.dp_model_free, self._model)
        self._logits = torch.empty(0, config.vocab_size)
        self._grow_angles(min(1024, config.max_positions))

    def new_kv(self, num_slots: int) -> PagedKV:
        """Heads first: what one head reads lies together."""
        shape = (self.config.num_kv_heads, num_slots, padded_dim(self.config.head_dim))
        keys, values = ([zeros(shape, self.dtype) for _ in range(self.config.num_layers)] for _ in range(2))
        return PagedKV(keys, values)

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        ids = np.array(token_ids, np.int64)
        hidden = torch.empty(len(ids), self.config.hidden_size)
        self._library.dp_embed(self._model, _address(ids), len(ids), hidden.data_ptr())
        return hidden

    def run(self, hidden: Tensor, batch: RaggedBatch, kv: PagedKV, start: int, stop: int) -> Tensor:
        totals = np.array([len(row.slots) for row in batch.rows], np.int64)
        if totals.max(initial=0) > self._num_positions:
            self._grow_angles(int(totals.max()))
        num_new = np.array([row.num_new for row in batch.rows], np.int64)
        slots = np.array([_address(row.slots) for row in batch.rows], np.uint64)
        keys, values = kv.arrays
        spec = BatchSpec(
            _address(slots),
            _address(totals),
            _address(num_new),
            len(batch.rows),
            batch.num_tokens,
            kv.keys[0].shape[1],
            ctypes.addressof(keys),
            ctypes.addressof(values),
            ctypes.addressof(self._angles),
        )
        if start < stop and batch.rows:
            self._library.dp_run(self._model, hidden.data_ptr(), ctypes.byref(spec), start, stop)
        return hidden

    def logits(self, hidden: Tensor, rows: Sequence[int]) -> Tensor:
        index = np.array(rows, np.int64)
        if len(index) > len(self._logits):
            self._logits = torch.empty(len(index), self.config.vocab_size)
        logits = self._logits[: len(index)]
        self._library.dp_logits(self._model, hidden.data_ptr(), _address(index), len(index), logits.data_ptr())
        return logits

    def pick(self, logits: Tensor, sampling: Sequence[SamplingParams], positions: Sequence[int]) -> list[int]:
        return cast(list[int], self._picks(logits, sampling, positions, False)["token"].tolist())

    def pick_with_confidence(
        self, logits: Tensor, sampling: Sequence[SamplingParams], positions: Sequence[int]
    ) -> tuple[list[int], list[float]]:
        picks = self._picks(logits, sampling, positions, True)
        return picks["token"].tolist(), picks["confidence"].tolist()

    def linear_pass(self, num_tokens: int) -> None:
        """The matrix products of one pass over num_tokens rows and nothing else, for the benchmark's floor."""
        self._library.dp_linears(self._model, num_tokens)

    def _picks(
        self, logits: Tensor, sampling: Sequence[SamplingParams], positions: Sequence[int], confidence: bool
    ) -> npt.NDArray[np.void]:
        temperatures = [0.0 if params.is_greedy else params.temperature for params in sampling]
        filtered = [row for row, params in enumerate(sampling) if not params.is_greedy and params.has_filters]
        if filtered:
            logits = logits.clone()
            logits[filtered] = filter_logits(logits[filtered], [sampling[row] for row in filtered])
            for row in filtered:
                temperatures[row] = 1.0  # filter_logits has scaled it
        how = np.empty(len(sampling), _PICKING)
        how["temperature"] = temperatures
        how["seed"] = [params.seed for params in sampling]
        how["position"] = positions
        picks = np.empty(len(sampling), _PICK)
        self._library.dp_pick(
            self._pool, logits.data_ptr(), *logits.shape, _address(how), int(confidence), _address(picks)
        )
        return picks

    def _grow_angles(self, num_positions: int) -> None:
        """Doubling, up to the longest context. Raises ValueError beyond it."""
        longest = self.config.max_positions
        if num_positions > longest:
            raise ValueError(f"position {num_positions - 1} lies beyond the {longest} of this checkpoint")
        self._num_positions = min(max(num_positions, 1024) * 2, longest)
        tables: dict[Rope, Tensor] = {
            rope: torch.stack(rope_table(rope, self._num_positions), 1).contiguous() for rope in set(self.config.ropes)
        }
        self._tables = tables
        self._angles = addresses([tables[rope].data_ptr() for rope in self.config.ropes])


def _address(array: npt.NDArray[np.generic]) -> int:
    return int(array.__array_interface__["data"][0])
