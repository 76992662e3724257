"""A drafter without a model: its KV holds the tokens themselves, and what it picks is a checksum of all it reads.

So a draft is right exactly when every position of its sequence holds what the sequence's owner wrote there.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from drafters.depth import Watermarks
from drafters.nested import NestedDrafter
from drafters.picks import PassRow, Pick
from drafters.shared import SharedPages
from model.pages import PageLedger

VOCAB_SIZE = 97
EXITS = (1, 2, 4)


class IntegerDrafter(NestedDrafter):
    def __init__(self, num_pages: int = 64, page_size: int = 8, max_positions: int = 128) -> None:
        self.exits = EXITS
        self.max_positions, self.vocab_size = max_positions, VOCAB_SIZE
        self.ledger = PageLedger(num_pages, page_size)
        self._marks: dict[int, Watermarks] = {}
        self._shared = SharedPages()
        self._tokens = np.zeros(num_pages * page_size, np.int64)

    def _roll_out(self, rows: Sequence[PassRow], depth: int) -> list[list[Pick]]:
        return [self._roll(row, depth) for row in rows]

    def _roll(self, row: PassRow, depth: int) -> list[Pick]:
        self._write(row.sequence, self.written(row.sequence), row.tokens)
        picks: list[Pick] = []
        survival = 1.0
        while len(picks) < row.ahead and not (picks and survival <= row.stop_probability):
            picks.append(self._pick_at(row, row.length + len(picks), depth))
            survival *= picks[-1].confidence
            if len(picks) < row.ahead and not survival <= row.stop_probability:
                self._write(row.sequence, row.length + len(picks) - 1, [picks[-1].token])
        marks = self._marks[row.sequence]
        for segment in range(self.exits.index(depth) + 1):
            marks = marks.advance(segment, row.length + len(picks) - 1)
        self._marks[row.sequence] = marks
        return picks

    def _pass(self, rows: Sequence[PassRow]) -> list[Pick | None]:
        for row in rows:
            self._write(row.sequence, self.written(row.sequence), row.tokens)
        return [self._descend(row) for row in rows]

    def _descend(self, row: PassRow) -> Pick | None:
        for segment in range(self.exits.index(row.depth) + 1):
            marks = self._marks[row.sequence]
            self._marks[row.sequence] = marks.advance(segment, marks.missing(segment, row.length).stop)
        return self._pick_at(row, row.length, row.depth) if row.drafts else None

    def _write(self, sequence: int, start: int, tokens: Sequence[int]) -> None:
        self._tokens[self.ledger.slots(sequence)[start : start + len(tokens)]] = tokens

    def _pick_at(self, row: PassRow, length: int, exit_: int) -> Pick:
        read = self._tokens[self.ledger.slots(row.sequence)[:length]].tolist()
        return pick_behind(read, exit_, row.sampling.seed)


def pick_behind(tokens: Sequence[int], exit_: int, seed: int) -> Pick:
    found = zlib.crc32(np.asarray(tokens, np.int64).tobytes(), (seed * 31 + exit_) & 0xFFFFFFFF)
    return Pick(found % VOCAB_SIZE, found // VOCAB_SIZE % 101 / 100)


def drafted_behind(tokens: Sequence[int], length: int, depth: int, seed: int) -> tuple[int, ...]:
    """What a draft of so many tokens is, from scratch."""
    known = list(tokens)
    for _ in range(length):
        known.append(pick_behind(known, depth, seed).token)
    return tuple(known[len(tokens) :])
