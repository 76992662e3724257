"""Full information: one pass over committed tokens tells at each of them what every exit would have picked.

The token at a position is picked from the hidden state of the position before, with the sequence's own noise, as
when it is drafted. So a match is a token that a draft at that exit would have got right, the true ones before it given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import NamedTuple

from torch import Tensor

from model.batch import BatchRow, build_batch
from model.decoder import Decoder
from model.kv import PagedKV
from model.pages import Slots
from protocol.draft import Probe
from protocol.request import SamplingParams

LOGIT_ROWS = 64  # whose logits are held at a time; a vocabulary is wide


@dataclass(frozen=True, slots=True)
class ProbeRow:
    """tokens: those at positions [start - 1, start - 1 + len(tokens)), at least two. Of the first nothing is told."""

    sequence: int
    start: int
    tokens: Sequence[int] = field(repr=False)
    sampling: SamplingParams

    @property
    def first(self) -> int:
        """The positions that are run are [first, stop): each predicts the token behind it."""
        return self.start - 1

    @property
    def stop(self) -> int:
        return self.first + self.num_told

    @property
    def num_told(self) -> int:
        return len(self.tokens) - 1


class _Picks(NamedTuple):
    """Of the flat batch at one exit."""

    tokens: list[int]
    confidences: list[float]


def nothing_new(base_length: int, num_exits: int) -> Probe:
    return Probe(base_length, ((),) * num_exits, ((),) * num_exits)


def probe_exits(
    decoder: Decoder, kv: PagedKV, exits: Sequence[int], rows: Sequence[ProbeRow], slots: Sequence[Slots]
) -> list[Probe]:
    """slots: of each row's sequence. KV of positions below `first` exists in all layers; that of [first, stop) is
    written.
    """
    batch = build_batch(
        [BatchRow(own[: row.stop], row.num_told) for row, own in zip(rows, slots, strict=True)], decoder.device
    )
    hidden = decoder.embed(list(chain.from_iterable(row.tokens[:-1] for row in rows)))
    picks = []
    for start, stop in pairwise((0, *exits)):
        hidden = decoder.run(hidden, batch, kv, start, stop)
        picks.append(_pick(decoder, hidden, rows))
    return [_told(row, offset, picks) for row, offset in zip(rows, batch.offsets[:-1], strict=True)]


def _pick(decoder: Decoder, hidden: Tensor, rows: Sequence[ProbeRow]) -> _Picks:
    """hidden: [num_tokens, hidden], on leaving an exit."""
    sampling = [row.sampling for row in rows for _ in range(row.num_told)]
    positions = [row.start + index for row in rows for index in range(row.num_told)]
    picks = _Picks([], [])
    for begin in range(0, len(positions), LOGIT_ROWS):
        end = min(begin + LOGIT_ROWS, len(positions))
        logits = decoder.logits(hidden, list(range(begin, end)))
        found = decoder.pick_with_confidence(logits, sampling[begin:end], positions[begin:end])
        picks.tokens.extend(found[0])
        picks.confidences.extend(found[1])
    return picks


def _told(row: ProbeRow, offset: int, picks: Sequence[_Picks]) -> Probe:
    """offset: of the row in the flat batch."""
    own = slice(offset, offset + row.num_told)
    matches = tuple(
        tuple(token == true for token, true in zip(exit_.tokens[own], row.tokens[1:], strict=True)) for exit_ in picks
    )
    return Probe(row.start, matches, tuple(tuple(exit_.confidences[own]) for exit_ in picks))
