"""A target's step and a drafter's rollout, as plain loops over any decoder. A decoder may do the same in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import prod
from typing import TYPE_CHECKING

from torch import Tensor

from model.batch import BatchRow, RaggedBatch, build_batch
from model.kv import PagedKV
from model.pages import Slots
from protocol.request import SamplingParams

if TYPE_CHECKING:
    from model.decoder import Decoder

Drafted = list[tuple[int, float]]  # (token, confidence)


@dataclass(frozen=True, slots=True)
class Rollout:
    """A row to draft for.

    slots: of every position up to the last that may be fed, start + len(tokens) + length - 2.
    stop_probability: the first token at which the product of the confidences so far is at most this is the row's last
        (Kangaroo's early stop, Liu et al. 2024, for the whole draft in place of one token). 0: no stop.
    ruled: changes the logits of the place behind these drafted tokens, [1, head_size], before one is picked.
    banned: the columns of the logits that are not picked behind these drafted tokens in place of this pick, [head_size]
        bool; None: the pick stands.
    """

    slots: Slots
    start: int
    tokens: Sequence[int] = field(repr=False)
    length: int
    sampling: SamplingParams
    stop_probability: float = 0.0
    ruled: Callable[[Sequence[int], Tensor], None] | None = field(default=None, repr=False)
    banned: Callable[[Sequence[int], int], Tensor | None] | None = field(default=None, repr=False)

    @property
    def total(self) -> int:
        return self.start + len(self.tokens)

    def goes_on(self, drafted: Drafted) -> bool:
        """Whether the draft continues after these tokens."""
        certainty = prod(confidence for _, confidence in drafted)
        return len(drafted) < self.length and not 0 < self.stop_probability >= certainty


def step(
    decoder: Decoder,
    token_ids: Sequence[int],
    batch: RaggedBatch,
    kv: PagedKV,
    wanted: Sequence[int],
    sampling: Sequence[SamplingParams],
    positions: Sequence[int],
) -> tuple[list[int], Tensor]:
    """Runs all layers over the batch and picks tokens. Returns these, and the logits, valid until the next call.

    wanted: indices of the flat tokens to pick after. positions: the absolute position of each pick.
    """
    hidden = decoder.run(decoder.embed(token_ids), batch, kv, 0, decoder.config.num_layers)
    logits = decoder.logits(hidden, wanted)
    return decoder.pick(logits, sampling, positions), logits


def roll_out(
    decoder: Decoder, rows: Sequence[Rollout], kv: PagedKV, depth: int, boundary: Tensor | None
) -> list[Drafted]:
    """The draft of each row: `length` tokens, or fewer if it stops. The last one has no KV yet.

    boundary: [num_slots, hidden] in the decoder's hidden_dtype, where the hidden states on leaving `depth` are kept.
    """
    drafts: list[Drafted] = [[] for _ in rows]
    live = list(zip(rows, drafts, strict=True))
    while live:
        new = [[draft[-1][0]] if draft else row.tokens for row, draft in live]
        totals = [row.total + len(draft) for row, draft in live]
        slots = [row.slots[:total] for (row, _), total in zip(live, totals, strict=True)]
        batch = build_batch(list(map(BatchRow, slots, map(len, new))), decoder.device)
        hidden = decoder.run(decoder.embed(list(chain.from_iterable(new))), batch, kv, 0, depth)
        if boundary is not None:
            boundary.index_copy_(0, batch.slots, hidden)
        logits = decoder.logits(hidden, [end - 1 for end in batch.offsets[1:]])
        for index, (row, draft) in enumerate(live):
            if row.ruled:
                row.ruled([token for token, _ in draft], logits[index : index + 1])
        picks = decoder.pick_with_confidence(logits, [row.sampling for row, _ in live], totals)
        made = list(zip(*picks, strict=True))
        for index, (row, draft) in enumerate(live):
            banned = row.banned([token for token, _ in draft], made[index][0]) if row.banned else None
            if banned is not None:
                own = logits[index : index + 1].masked_fill(banned.to(logits.device), -float("inf"))
                (made[index],) = zip(*decoder.pick_with_confidence(own, [row.sampling], [totals[index]]), strict=True)
            draft.append(made[index])
        live = [(row, draft) for row, draft in live if row.goes_on(draft)]
    return drafts
