"""A ragged batch: one flat list of new tokens, with per-row lengths and no padding between rows.

A row is the slot map of a sequence and the number of its last positions that are new in this pass. Positions are
indices into the slot map, which also says where the KV of each position lies.

Attention on a CPU is called per group of rows. Rows with few new tokens and contexts of similar length are padded
together. Longer rows (prefill chunks) are alone, because padding a decode row to a chunk costs more than a call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.pages import Slots

LONG_ROW = 32  # a row with at least so many new tokens is a group of its own
MAX_PADDING = 2.0
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class BatchRow:
    """slots: shape [total], the slots of positions 0..total-1. The last num_new of them are this pass's tokens."""

    slots: Slots
    num_new: int


@dataclass(frozen=True, eq=False)
class RowGroup:
    """The rows of one attention call, padded to [num_rows, max_new] queries and [num_rows, max_total] keys.

    queries: [num_rows, max_new] indices of flat tokens; padding repeats a row's first token.
    positions: [num_rows, max_new] of the queries.
    slots: [num_rows, max_total] of the keys; padding repeats the row's slot 0 and is masked.
    """

    queries: Tensor
    positions: Tensor
    slots: Tensor
    _masks: dict[int | None, Tensor] = field(default_factory=dict, repr=False)
    _blocks: dict[torch.Size, Tensor] = field(default_factory=dict, repr=False)

    def gather(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """keys, values: [num_slots, kv_heads, dim]. Returns [num_rows, kv_heads, max_total, dim] of each.

        The result is valid until the next call: all layers of a pass reuse one block of memory, because fresh memory
        doubles the time of a pass.
        """
        shape = torch.Size((*self.slots.shape, *keys.shape[1:]))
        if shape not in self._blocks:
            self._blocks[shape] = keys.new_empty((2, *shape))
        blocks = self._blocks[shape]
        for tensor, block in zip((keys, values), blocks, strict=True):
            torch.index_select(tensor, 0, self.slots.view(-1), out=block.view(-1, *keys.shape[1:]))
        return blocks[0].transpose(1, 2), blocks[1].transpose(1, 2)

    def mask(self, window: int | None) -> Tensor:
        """[num_rows, 1, max_new, max_total] bool: causal, and limited to the last `window` positions if given.

        Built once per pass for all layers with the same window.
        """
        total = self.slots.shape[1]
        if window is not None and window >= total:
            window = None
        if window not in self._masks:
            keys = torch.arange(total, device=self.slots.device)
            queries = self.positions[:, :, None]
            seen = keys <= queries
            if window is not None:
                seen &= keys > queries - window
            self._masks[window] = seen[:, None]
        return self._masks[window]


@dataclass(frozen=True, eq=False)
class RaggedBatch:
    """A ragged batch. offsets: [num_rows + 1]; row r is tokens offsets[r]:offsets[r + 1] of the flat list."""

    rows: tuple[BatchRow, ...]
    offsets: tuple[int, ...]
    device: torch.device

    @property
    def num_tokens(self) -> int:
        return self.offsets[-1]

    @cached_property
    def positions(self) -> Tensor:
        """[num_tokens] int64."""
        positions = [np.arange(len(row.slots) - row.num_new, len(row.slots)) for row in self.rows]
        return self._tensor(np.concatenate([np.empty(0, np.int64), *positions]))

    @cached_property
    def slots(self) -> Tensor:
        """[num_tokens] int64, the slot of each token's KV."""
        slots = [row.slots[-row.num_new :] for row in self.rows]
        return self._tensor(np.concatenate([np.empty(0, np.int64), *slots]))

    @cached_property
    def max_total(self) -> int:
        """The number of positions of the longest row."""
        return max(len(row.slots) for row in self.rows)

    @cached_property
    def groups(self) -> tuple[RowGroup, ...]:
        short = [r for r, row in enumerate(self.rows) if row.num_new < LONG_ROW]
        alone = [[r] for r, row in enumerate(self.rows) if row.num_new >= LONG_ROW]
        return tuple(
            self._group(rows) for rows in group_by_length(short, [len(row.slots) for row in self.rows]) + alone
        )

    def _group(self, members: list[int]) -> RowGroup:
        rows = [self.rows[r] for r in members]
        num_new = np.array([row.num_new for row in rows])
        totals = np.array([len(row.slots) for row in rows])
        columns = np.arange(num_new.max())
        columns = np.where(columns < num_new[:, None], columns, 0)
        slots = np.empty((len(rows), totals.max()), np.int64)
        for r, row in enumerate(rows):
            slots[r, : totals[r]] = row.slots
            slots[r, totals[r] :] = row.slots[0]
        starts = np.array([self.offsets[r] for r in members])
        return RowGroup(
            queries=self._tensor(starts[:, None] + columns),
            positions=self._tensor((totals - num_new)[:, None] + columns),
            slots=self._tensor(slots),
        )

    def _tensor(self, array: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(self.device)


def group_by_length(rows: Sequence[int], totals: Sequence[int]) -> list[list[int]]:
    """Groups rows so that padding the keys of a group takes at most MAX_PADDING times their number.

    totals: keys of each row. Groups are sorted by length, rows within a group by their order in the batch.
    """
    groups: list[list[int]] = []
    held = 0
    for row in sorted(rows, key=lambda row: totals[row]):
        held += totals[row]
        if not groups or (len(groups[-1]) + 1) * totals[row] > MAX_PADDING * held:
            groups.append([])
            held = totals[row]
        groups[-1].append(row)
    return [sorted(group) for group in groups]


def build_batch(rows: Sequence[BatchRow], device: torch.device = CPU) -> RaggedBatch:
    """A batch of rows. Raises ValueError for a row without new tokens, or with more new tokens than positions."""
    for row in rows:
        if not 0 < row.num_new <= len(row.slots):
            raise ValueError(f"a row has {row.num_new} new tokens and {len(row.slots)} positions")
    return RaggedBatch(tuple(rows), (0, *accumulate(row.num_new for row in rows)), device)
