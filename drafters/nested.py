"""The nested drafter: one ragged pass over rows of different targets and different depths.

Segment 0 runs for every row; then a segment runs for those that go deeper. A row leaves at its depth, and only there
are the logits of one that drafts computed. Positions that left earlier ride along from the hidden states kept at the
boundary, so a row's missing positions may differ from segment to segment (see drafters/depth.py).

Hidden states at a boundary live in a tensor indexed by the same slots as the KV. They are written only when a
segment's rows are not exactly those of the next one: otherwise they simply flow on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from drafters.depth import Watermarks
from drafters.manifest import drafter_exits
from drafters.picks import PassRow, Pick
from drafters.shared import SharedPages
from model.batch import CPU, BatchRow, RaggedBatch, build_batch
from model.config import read_config
from model.decoder import Decoder
from model.execution import Execution
from model.kv import bytes_per_slot
from model.load import WeightFormat, load_decoder
from model.native.decoder import NativeDecoder
from model.pages import PageLedger
from model.rollout import Rollout
from protocol.errors import ConfigError


@dataclass(frozen=True, slots=True)
class _Stretch:
    """The positions that one row runs in one segment. index: the row's place in the pass."""

    index: int
    row: PassRow = field(compare=False)
    positions: range


class NestedDrafter:
    """Owns the pages, KV, boundary states and watermarks of its sequences, which are named by integers."""

    def __init__(self, decoder: Decoder, exits: tuple[int, ...], num_pages: int, page_size: int) -> None:
        """exits: ascending depths in layers, none beyond the decoder."""
        if not exits or list(exits) != sorted(set(exits)) or not 0 < exits[0] <= exits[-1] <= decoder.config.num_layers:
            raise ConfigError(f"exits {exits} must ascend within the {decoder.config.num_layers} layers of the drafter")
        self.exits = exits
        self.max_positions = decoder.config.max_positions
        self.vocab_size = decoder.config.vocab_size
        self.ledger = PageLedger(num_pages, page_size)
        self.decoder = decoder
        num_slots = num_pages * page_size
        self._kv = decoder.new_kv(num_slots)
        shape = (num_slots, decoder.config.hidden_size)
        self._boundaries = [torch.zeros(shape, dtype=decoder.hidden_dtype, device=decoder.device) for _ in exits[:-1]]
        self._marks: dict[int, Watermarks] = {}
        self._shared = SharedPages()

    def with_kv(self, num_pages: int, page_size: int) -> NestedDrafter:
        """The same weights with an empty KV of its own. Passes of both must not run at once."""
        return NestedDrafter(self.decoder, self.exits, num_pages, page_size)

    def open(self, sequence: int) -> None:
        self.ledger.open(sequence)
        self._marks[sequence] = Watermarks.none(len(self.exits))

    def free(self, sequence: int) -> None:
        self.ledger.free(sequence)
        self._shared.forget(sequence)
        del self._marks[sequence]

    def truncate(self, sequence: int, length: int) -> None:
        """Forgets positions from `length` on, and gives back the pages beyond them."""
        self._marks[sequence] = self._marks[sequence].truncate(self.ledger.truncate(sequence, length))

    def adopt(self, sequence: int, keys: Sequence[bytes], depth: int) -> None:
        """Takes over what others have read of the pages with these keys."""
        start = self.settled(sequence, depth)
        self._marks[sequence] = self._shared.adopt(self.ledger, sequence, self._marks[sequence], keys, start)

    def keep(self, sequence: int, keys: Sequence[bytes]) -> None:
        """Offers its pages with these keys to others, as far as they were read. Their tokens will not change."""
        self._shared.keep(self.ledger, sequence, self._marks[sequence], keys)

    def written(self, sequence: int) -> int:
        """How many positions segment 0 has run."""
        return self._marks[sequence].marks[0]

    def settled(self, sequence: int, depth: int) -> int:
        """How many positions have reached this depth."""
        return self._marks[sequence].marks[self.exits.index(depth)]

    @property
    def device(self) -> torch.device:
        return self.decoder.device

    def check(self) -> None:
        self.ledger.check()
        assert set(self._marks) == set(self.ledger.sequences), "watermarks and ledger know different sequences"
        for sequence, marks in self._marks.items():
            marks.check()
            assert marks.marks[0] <= self.ledger.capacity(sequence), "KV was written beyond the reserved pages"

    def run(self, rows: Sequence[PassRow]) -> list[list[Pick]]:
        """The drafts of each row: one token or, where the pass can go on by itself, up to `ahead` until its stop; none
        for a row that does not draft. Pages for every row's length are reserved.
        """
        depth = self._shared_depth(rows)
        if depth is not None:
            return self._roll_out(rows, depth)
        return [[] if pick is None else [pick] for pick in self._pass(rows)]

    def _shared_depth(self, rows: Sequence[PassRow]) -> int | None:
        """The exit that every row drafts from, if there is one and all segments up to it lack the same positions."""
        depths = {row.depth for row in rows}
        if len(depths) != 1 or not all(row.drafts for row in rows):
            return None
        depth = depths.pop()
        last = self.exits.index(depth)
        level = all(len(set(self._marks[row.sequence].marks[: last + 1])) == 1 for row in rows)
        return depth if level else None

    def _roll_out(self, rows: Sequence[PassRow], depth: int) -> list[list[Pick]]:
        rollouts = [
            Rollout(
                self.ledger.slots(row.sequence),
                self.written(row.sequence),
                row.tokens,
                row.ahead,
                row.sampling,
                row.stop_probability,
            )
            for row in rows
        ]
        segment = self.exits.index(depth)
        boundary = self._boundaries[segment] if depth < self.exits[-1] else None
        drafted = self.decoder.roll_out(rollouts, self._kv, depth, boundary)
        for row, picks in zip(rows, drafted, strict=True):
            marks = self._marks[row.sequence]
            for own in range(segment + 1):
                marks = marks.advance(own, row.length + len(picks) - 1)
            self._marks[row.sequence] = marks
        return [[Pick(token, confidence) for token, confidence in row] for row in drafted]

    def _pass(self, rows: Sequence[PassRow]) -> list[Pick | None]:
        picks: list[Pick | None] = [None] * len(rows)
        stretches = self._stretches(0, rows)
        batch = self._batch(stretches)
        hidden = self._embed(stretches)
        for segment, depth in enumerate(self.exits):
            if stretches:
                start = self.exits[segment - 1] if segment else 0
                hidden = self.decoder.run(hidden, batch, self._kv, start, depth)
                self._advance(segment, stretches)
                self._pick(depth, hidden, batch, stretches, picks)
            if depth == self.exits[-1]:
                break
            deeper = self._stretches(segment + 1, rows)
            if deeper != stretches:
                boundary = self._boundaries[segment]
                boundary.index_copy_(0, batch.slots, hidden)
                stretches, batch = deeper, self._batch(deeper)
                hidden = boundary.index_select(0, batch.slots)
        return picks

    def _stretches(self, segment: int, rows: Sequence[PassRow]) -> list[_Stretch]:
        """The positions to run in `segment`."""
        stretches = []
        for index, row in enumerate(rows):
            if row.depth >= self.exits[segment] and (missing := self._marks[row.sequence].missing(segment, row.length)):
                stretches.append(_Stretch(index, row, missing))
        return stretches

    def _batch(self, stretches: Sequence[_Stretch]) -> RaggedBatch:
        rows = [
            BatchRow(self.ledger.slots(stretch.row.sequence)[: stretch.positions.stop], len(stretch.positions))
            for stretch in stretches
        ]
        return build_batch(rows, self.device)

    def _embed(self, stretches: Sequence[_Stretch]) -> Tensor:
        """[num_tokens, hidden], the input of segment 0."""
        return self.decoder.embed(list(chain.from_iterable(stretch.row.tokens for stretch in stretches)))

    def _advance(self, segment: int, stretches: Sequence[_Stretch]) -> None:
        for stretch in stretches:
            marks = self._marks[stretch.row.sequence]
            self._marks[stretch.row.sequence] = marks.advance(segment, stretch.positions.stop)

    def _pick(
        self,
        depth: int,
        hidden: Tensor,
        batch: RaggedBatch,
        stretches: Sequence[_Stretch],
        picks: list[Pick | None],
    ) -> None:
        """Fills in the picks of the rows that draft at `depth`. hidden: [num_tokens, hidden]."""
        drafting = [
            (stretch, batch.offsets[place + 1] - 1)
            for place, stretch in enumerate(stretches)
            if stretch.row.drafts and stretch.row.depth == depth
        ]
        if not drafting:
            return
        found = self.decoder.pick_with_confidence(
            self.decoder.logits(hidden, [last for _, last in drafting]),
            [stretch.row.sampling for stretch, _ in drafting],
            [stretch.row.length for stretch, _ in drafting],
        )
        for (stretch, _), token, confidence in zip(drafting, *found, strict=True):
            picks[stretch.index] = Pick(token, confidence)


def load_nested(
    directory: Path,
    *,
    dtype: torch.dtype,
    num_positions: int,
    page_size: int,
    device: torch.device = CPU,
    execution: Execution = Execution.AUTO,
    weights: WeightFormat = WeightFormat.STORED,
) -> NestedDrafter:
    """The checkpoint's layers up to its deepest exit, with KV and boundary states for `num_positions`.

    Exits are those of its manifest; a checkpoint without one has a single exit, its full depth. Raises ConfigError or
    UnsupportedModel.
    """
    if num_positions < page_size:
        raise ConfigError(f"KV memory for {num_positions} positions holds no page of {page_size}; raise it")
    try:
        exits = drafter_exits(directory)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    decoder = load_decoder(
        directory, dtype=dtype, device=device, num_layers=exits[-1], execution=execution, weights=weights
    )
    return NestedDrafter(decoder, exits, num_positions // page_size, page_size)


def bytes_per_position(directory: Path, dtype: torch.dtype) -> int:
    """What a position takes in the pool at most: KV of the layers up to the deepest exit, and a hidden state per inner
    exit, which native kernels keep in float32.
    """
    exits = drafter_exits(directory)
    config = read_config(directory).first_layers(exits[-1])
    return bytes_per_slot(config, dtype) + (len(exits) - 1) * config.hidden_size * NativeDecoder.hidden_dtype.itemsize
