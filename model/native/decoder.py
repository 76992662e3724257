"""A Decoder over the native kernels: one call per pass, with results of a row independent of the other rows.

Hidden states between layers are float32 for either dtype, so a pass may stop at any layer and continue later without
changing a bit.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.batch import CPU, RaggedBatch
from model.config import DecoderConfig, Rope
from model.decoder import StoredWeights
from model.kv import PagedKV, padded_dim
from model.native.asked import Asked
from model.native.library import BatchSpec, addresses, library, num_threads, thread_pool
from model.native.memory import Block, address, staggered
from model.native.weights import pack
from model.pages import Slots
from model.rollout import Drafted, Rollout, roll_out, step
from model.rope import rope_table
from model.sampling import NO_PICK, filter_logits, surely_kept
from protocol.request import SamplingParams

_PICKING = np.dtype([("temperature", np.float32), ("seed", np.uint64), ("position", np.int64)], align=True)
_PICK = np.dtype([("token", np.int64), ("confidence", np.float64), ("runner_up", np.int64)])
_LIMIT = np.dtype([("length", np.int64), ("stop_probability", np.float64), ("ask", np.uint64)])


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Argument arrays of the kernels, reused from call to call."""

    ids: Block = field(default_factory=lambda: Block(np.int64))
    index: Block = field(default_factory=lambda: Block(np.int64))
    slots: Block = field(default_factory=lambda: Block(np.uint64))
    totals: Block = field(default_factory=lambda: Block(np.int64))
    num_new: Block = field(default_factory=lambda: Block(np.int64))
    how: Block = field(default_factory=lambda: Block(_PICKING))
    limits: Block = field(default_factory=lambda: Block(_LIMIT))
    picks: Block = field(default_factory=lambda: Block(_PICK))


class NativeDecoder:
    """A model.decoder.Decoder on the CPU. Not thread-safe: its buffers are reused from pass to pass."""

    is_deterministic = True
    hidden_dtype = torch.float32
    device = CPU

    def __init__(self, config: DecoderConfig, weights: StoredWeights) -> None:
        """Raises model.native.compiler.CompilerError if the kernels cannot be compiled."""
        self.config = config
        self.dtype = weights.dtype
        self._library = library()
        self._pool = thread_pool(num_threads())
        self._packed = pack(config, weights)
        self._model = self._library.dp_model(ctypes.byref(self._packed.spec), self._pool)
        weakref.finalize(self, self._library.dp_model_free, self._model)
        self._blocks = _Blocks()
        self._head = np.asarray(config.head_token_ids, np.int64)
        self._hidden = torch.empty(0, config.hidden_size)
        self._logits = torch.empty(0, config.head_size)
        self._grow_angles(min(1024, config.max_positions))

    def new_kv(self, num_slots: int) -> PagedKV:
        """KV with heads first, so that the data of one head is contiguous."""
        shape = (self.config.num_kv_heads, num_slots, padded_dim(self.config.head_dim))
        both = staggered(2 * self.config.num_layers, shape, self.dtype)
        return PagedKV(both[0::2], both[1::2])

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        count = len(token_ids)
        hidden = self._hidden_for(count)
        self._library.dp_embed(self._model, self._blocks.ids.holding(token_ids), count, hidden.data_ptr())
        return hidden[:count]

    def run(self, hidden: Tensor, batch: RaggedBatch, kv: PagedKV, start: int, stop: int) -> Tensor:
        if start == stop or not batch.rows:
            return hidden
        self._library.dp_run(self._model, hidden.data_ptr(), ctypes.byref(self._spec(batch, kv)), start, stop)
        return hidden

    def roll_out(self, rows: Sequence[Rollout], kv: PagedKV, depth: int, boundary: Tensor | None) -> list[Drafted]:
        """One call, unless a row has filters, which torch handles."""
        sampling = [row.sampling for row in rows]
        if _has_filters(sampling):
            return roll_out(self, rows, kv, depth, boundary)
        totals = [row.total for row in rows]
        lengths = [row.length for row in rows]
        furthest = max(total + length - 1 for total, length in zip(totals, lengths, strict=True))
        spec = self._batch([row.slots for row in rows], totals, [len(row.tokens) for row in rows], furthest, kv)
        self._how([_temperature(params) for params in sampling], sampling, totals)
        limits = self._blocks.limits.take(len(rows))
        limits["length"], limits["stop_probability"] = lengths, [row.stop_probability for row in rows]
        picks, starts = self._blocks.picks.take(sum(lengths)), list(accumulate(lengths, initial=0))
        asking = [bool(row.ruled or row.banned) for row in rows]
        asked = Asked(rows, [picks["token"][at:] for at in starts], self.config.head_size) if any(asking) else None
        limits["ask"] = np.where(asking, asked.address, 0) if asked else 0
        self._library.dp_roll(
            self._model,
            ctypes.byref(spec),
            self._blocks.ids.holding(list(chain.from_iterable(row.tokens for row in rows))),
            self._blocks.how.address,
            self._blocks.limits.address,
            depth,
            None if boundary is None else boundary.data_ptr(),
            self._blocks.picks.address,
        )
        if asked:
            asked.check()
        drafted, counts = picks[["token", "confidence"]], limits["length"].tolist()
        return [drafted[start : start + count].tolist() for start, count in zip(starts, counts, strict=False)]

    def _spec(self, batch: RaggedBatch, kv: PagedKV) -> BatchSpec:
        rows = batch.rows
        totals = [len(row.slots) for row in rows]
        return self._batch([row.slots for row in rows], totals, [row.num_new for row in rows], max(totals), kv)

    def _batch(
        self, slots: Sequence[Slots], totals: Sequence[int], num_new: Sequence[int], furthest: int, kv: PagedKV
    ) -> BatchSpec:
        """The kernels' view of a batch. furthest: positions of the longest row when the call returns."""
        if furthest > self._num_positions:
            self._grow_angles(furthest)
        keys, values = kv.arrays
        return BatchSpec(
            self._blocks.slots.holding([address(own) for own in slots]),
            self._blocks.totals.holding(totals),
            self._blocks.num_new.holding(num_new),
            len(totals),
            sum(num_new),
            kv.keys[0].shape[1],
            ctypes.addressof(keys),
            ctypes.addressof(values),
            ctypes.addressof(self._angles),
        )

    def logits(self, hidden: Tensor, rows: Sequence[int]) -> Tensor:
        count = len(rows)
        logits = self._logits_for(count)
        index = self._blocks.index.holding(rows)
        self._library.dp_logits(self._model, hidden.data_ptr(), index, count, logits.data_ptr())
        return logits[:count]

    def _hidden_for(self, count: int) -> Tensor:
        """A buffer of at least `count` rows, reused from call to call."""
        if count > self._hidden.shape[0]:
            self._hidden = torch.empty(2 * count, self.config.hidden_size)
        return self._hidden

    def _logits_for(self, count: int) -> Tensor:
        if count > self._logits.shape[0]:
            self._logits = torch.empty(2 * count, self.config.head_size)
        return self._logits

    def pick(self, logits: Tensor, sampling: Sequence[SamplingParams], positions: Sequence[int]) -> list[int]:
        return _tokens(self._picks(logits, sampling, positions, False))

    def pick_with_confidence(
        self, logits: Tensor, sampling: Sequence[SamplingParams], positions: Sequence[int]
    ) -> tuple[list[int], list[float]]:
        picks = self._picks(logits, sampling, positions, True)
        return picks["token"].tolist(), picks["confidence"].tolist()

    def step(
        self,
        token_ids: Sequence[int],
        batch: RaggedBatch,
        kv: PagedKV,
        wanted: Sequence[int],
        sampling: Sequence[SamplingParams],
        positions: Sequence[int],
    ) -> tuple[list[int], Tensor]:
        """See model.rollout.step. A single kernel call: after a pass the caches no longer hold Python's data."""
        if not wanted:
            return step(self, token_ids, batch, kv, wanted, sampling, positions)
        count = len(wanted)
        spec = self._spec(batch, kv)
        self._how([_temperature(params) for params in sampling], sampling, positions)
        picks, logits = self._blocks.picks.take(count), self._logits_for(count)
        self._library.dp_step(
            self._model,
            self._pool,
            ctypes.byref(spec),
            self._blocks.ids.holding(token_ids),
            self._hidden_for(len(token_ids)).data_ptr(),
            self.config.num_layers,
            self._blocks.index.holding(wanted),
            count,
            logits.data_ptr(),
            self.config.head_size,
            self._packed.spec.token_ids,
            self._blocks.how.address,
            self._blocks.picks.address,
        )
        return _tokens(self._filtered(picks, logits[:count], sampling, positions, False)), logits[:count]

    def _picks(
        self, logits: Tensor, sampling: Sequence[SamplingParams], positions: Sequence[int], confidence: bool
    ) -> npt.NDArray[Any]:
        picks = self._best(logits, sampling, positions, confidence)
        return self._filtered(picks, logits, sampling, positions, confidence)

    def _filtered(
        self,
        picks: npt.NDArray[Any],
        logits: Tensor,
        sampling: Sequence[SamplingParams],
        positions: Sequence[int],
        confidence: bool,
    ) -> npt.NDArray[Any]:
        """The picks as filters have them. Noise belongs to a token and not to its rivals: the best of all tokens, where
        the filters keep it, is the best of those that they keep. Only for the other rows are they sorted.
        """
        rows = [row for row, params in enumerate(sampling) if params.has_filters and not params.is_greedy]
        kept = self._kept(picks[rows], logits[rows], [sampling[row] for row in rows], confidence) if rows else []
        refused = [row for row, is_kept in zip(rows, kept, strict=True) if not is_kept]
        if not refused:
            return picks
        made, scaled = picks.copy(), filter_logits(logits[refused], [sampling[row] for row in refused])
        own = [SamplingParams(seed=sampling[row].seed) for row in refused], [positions[row] for row in refused]
        made[refused] = self._best(scaled, *own, confidence)
        return made

    def _kept(
        self, picks: npt.NDArray[Any], logits: Tensor, sampling: Sequence[SamplingParams], confidence: bool
    ) -> list[bool]:
        """Whether filters surely keep these picks, and the runner-ups that their confidences come from. The less likely
        of two tokens decides: every filter that keeps it keeps the other.
        """
        names, head = ("token", "runner_up") if confidence else ("token",), self.config.head_token_ids
        found = [np.searchsorted(self._head, picks[name]) if head else picks[name].clip(0) for name in names]
        columns = torch.from_numpy(np.stack(found, axis=-1))
        least = columns.gather(-1, logits.gather(-1, columns).argmin(-1, keepdim=True))[:, 0]
        return cast(list[bool], (surely_kept(logits, sampling, least).numpy() & (picks["runner_up"] >= 0)).tolist())

    def _best(
        self, logits: Tensor, sampling: Sequence[SamplingParams], positions: Sequence[int], confidence: bool
    ) -> npt.NDArray[Any]:
        """Picks without filters."""
        self._how([_temperature(params) for params in sampling], sampling, positions)
        picks = self._blocks.picks.take(len(sampling))
        self._library.dp_pick(
            self._pool,
            logits.data_ptr(),
            *logits.shape,
            self._packed.spec.token_ids,
            self._blocks.how.address,
            int(confidence),
            self._blocks.picks.address,
        )
        return picks

    def _how(self, temperatures: Sequence[float], sampling: Sequence[SamplingParams], positions: Sequence[int]) -> None:
        how = self._blocks.how.take(len(sampling))
        how["temperature"] = temperatures
        how["seed"] = [params.seed for params in sampling]
        how["position"] = positions

    def _grow_angles(self, num_positions: int) -> None:
        """Doubles the table of angles, up to the maximum context. Raises ValueError beyond it."""
        longest = self.config.max_positions
        if num_positions > longest:
            raise ValueError(f"position {num_positions - 1} lies beyond the {longest} of this checkpoint")
        self._num_positions = min(max(num_positions, 1024) * 2, longest)
        tables: dict[Rope, Tensor] = {
            rope: torch.stack(rope_table(rope, self._num_positions), 1).contiguous() for rope in set(self.config.ropes)
        }
        self._tables = tables
        self._angles = addresses([tables[rope].data_ptr() for rope in self.config.ropes])


def _temperature(params: SamplingParams) -> float:
    """The temperature for the kernels; 0 means argmax."""
    return 0.0 if params.is_greedy else params.temperature


def _tokens(picks: npt.NDArray[Any]) -> list[int]:
    """The picked tokens; NO_PICK where the kernels set the runner-up to -1."""
    return cast(list[int], np.where(picks["runner_up"] < 0, NO_PICK, picks["token"]).tolist())


def _has_filters(sampling: Sequence[SamplingParams]) -> bool:
    return any(params.has_filters and not params.is_greedy for params in sampling)
