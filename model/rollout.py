"""What a target and a drafter do with a decoder: a step, and drafting ahead, where each token is fed back for the next.

These are the plain ones; a decoder may do the same in one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import prod
from typing import TYPE_CHECKING

from torch import Tensor

from model.batch import RaggedBatch, Row, build_batch
from model.kv import PagedKV
from model.pages import Slots
from protocol.request import SamplingParams

if TYPE_CHECKING:
    from model.decoder import Decoder

Drafted = list[tuple[int, float, int]]  # tokens with their confidences and runner-ups


@dataclass(frozen=True, slots=True)
class Rollout:
    """tokens: those at positions [start, start + len(tokens)), not yet run. length: how many to draft, at least 1.

    slots: of every position up to the last that may be fed, start + len(tokens) + length - 2.
    stop_probability: the first token at which the product of the confidences so far is at most this is the row's last
        (Kangaroo's early stop, Liu et al. 2024, for the whole draft in place of one token). 0: none is.
    """

    slots: Slots
    start: int
    tokens: Sequence[int] = field(repr=False)
    length: int
    sampling: SamplingParams
    stop_probability: float = 0.0

    @property
    def total(self) -> int:
        return self.start + len(self.tokens)

    def goes_on(self, drafted: Drafted) -> bool:
        """Whether there is more to draft."""
        certainty = prod(confidence for _, confidence, _ in drafted)
        return len(drafted) < self.length and not 0 < self.stop_probability >= certainty


def step(
    decoder: Decoder,
    token_ids: Sequence[int],
    batch: RaggedBatch,
    kv: PagedKV,
    wanted: Sequence[int],
    sampling: Sequence[SamplingParams],
    positions: Sequence[int],
) -> list[int]:
    """All layers over the batch, and the picks of the wanted tokens. positions: those that the picks will take."""
    hidden = decoder.run(decoder.embed(token_ids), batch, kv, 0, decoder.config.num_layers)
    return decoder.pick(decoder.logits(hidden, wanted), sampling, positions)


@dataclass(slots=True)
class _Rolling:
    """A row on its way. new: the tokens of its next pass."""

    rollout: Rollout
    new: list[int]
    drafted: Drafted = field(default_factory=list)

    @property
    def total(self) -> int:
        """Positions when its next pass is done."""
        return self.rollout.total + len(self.drafted)

    def take(self, pick: tuple[int, float, int]) -> None:
        self.drafted.append(pick)
        self.new = [pick[0]]


def roll_out(
    decoder: Decoder, rows: Sequence[Rollout], kv: PagedKV, depth: int, boundary: Tensor | None
) -> list[Drafted]:
    """What each row drafts: `length` tokens, or fewer where it stops. The last one has no KV yet.

    boundary: [num_slots, hidden] in the decoder's hidden_dtype, where the hidden states on leaving `depth` are kept.
    """
    rolling = [_Rolling(row, list(row.tokens)) for row in rows]
    live = rolling
    while live:
        batch = build_batch([Row(one.rollout.slots[: one.total], len(one.new)) for one in live], decoder.device)
        hidden = decoder.run(decoder.embed(list(chain.from_iterable(one.new for one in live))), batch, kv, 0, depth)
        if boundary is not None:
            boundary.index_copy_(0, batch.slots, hidden)
        logits = decoder.logits(hidden, [end - 1 for end in batch.offsets[1:]])
        sampling, positions = [one.rollout.sampling for one in live], [one.total for one in live]
        picks = zip(*decoder.pick_with_confidence(logits, sampling, positions), strict=True)
        for one, pick in zip(live, picks, strict=True):
            one.take(pick)
        live = [one for one in live if one.rollout.goes_on(one.drafted)]
    return [one.drafted for one in rolling]
