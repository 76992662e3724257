"""Plain implementations of a target's step and a drafter's rollout, over any decoder.

A rollout drafts token by token: each pick is the input of the next pass. Decoders may do the same in one call. With
stream heads at its exit, a rollout guesses tokens in advance and needs fewer passes (model/streams.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from math import prod
from typing import TYPE_CHECKING

from torch import Tensor

from model.batch import BatchRow, RaggedBatch, build_batch
from model.kv import PagedKV
from model.pages import Slots
from model.streams import StreamHead, next_state
from protocol.request import SamplingParams

if TYPE_CHECKING:
    from model.decoder import Decoder

Drafted = list[tuple[int, float, int]]  # (token, confidence, runner-up)


@dataclass(frozen=True, slots=True)
class Rollout:
    """A row to draft for.

    tokens: the tokens at positions [start, start + len(tokens)), not yet run. length: tokens to draft, at least 1.
    slots: one for every position up to start + len(tokens) + length - 2, the last that may be fed.
    floor: probability; the draft ends at the first token where the product of confidences is at most this (Kangaroo's
        early stop, Liu et al. 2024, applied to the whole draft). 0: never.
    """

    slots: Slots
    start: int
    tokens: Sequence[int] = field(repr=False)
    length: int
    sampling: SamplingParams
    floor: float = 0.0

    @property
    def total(self) -> int:
        return self.start + len(self.tokens)

    def goes_on(self, drafted: Drafted) -> bool:
        """Whether the draft continues after these tokens."""
        certainty = prod(confidence for _, confidence, _ in drafted)
        return len(drafted) < self.length and not (self.floor > 0 and certainty <= self.floor)


def step(
    decoder: Decoder,
    token_ids: Sequence[int],
    batch: RaggedBatch,
    kv: PagedKV,
    wanted: Sequence[int],
    sampling: Sequence[SamplingParams],
    positions: Sequence[int],
) -> list[int]:
    """Runs all layers over the batch and picks tokens.

    wanted: indices of the flat tokens to pick after. positions: the absolute position of each pick.
    """
    hidden = decoder.run(decoder.embed(token_ids), batch, kv, 0, decoder.config.num_layers)
    return decoder.pick(decoder.logits(hidden, wanted), sampling, positions)


@dataclass(slots=True)
class _Rolling:
    """The state of a row. new: the tokens of its next pass; the last `num_guesses` of them may be wrong."""

    rollout: Rollout
    new: list[int]
    num_guesses: int = 0
    drafted: Drafted = field(default_factory=list)

    @property
    def total(self) -> int:
        """The number of positions after its next pass."""
        return self.rollout.total + len(self.drafted) + self.num_guesses

    @property
    def goes_on(self) -> bool:
        return self.rollout.goes_on(self.drafted)

    def take(self, picks: Drafted) -> int:
        """Appends picks up to the first wrong guess, and returns the number of right guesses that were used.

        picks: after the last certain token and after each guess.
        """
        guesses = self.new[len(self.new) - self.num_guesses :]
        for right, pick in enumerate(picks):
            self.drafted.append(pick)
            if not self.goes_on or right == len(guesses) or guesses[right] != pick[0]:
                break
        self.new, self.num_guesses = [self.drafted[-1][0]], 0
        return right

    def guess(self, token: int) -> None:
        self.new.append(token)
        self.num_guesses += 1


def roll_out(
    decoder: Decoder,
    rows: Sequence[Rollout],
    kv: PagedKV,
    depth: int,
    boundary: Tensor | None,
    streams: Sequence[StreamHead] = (),
) -> list[Drafted]:
    """The draft of each row: `length` tokens, or fewer if its floor ends it. The last token has no KV yet.

    boundary: [num_slots, hidden] in the decoder's hidden_dtype; receives the hidden states after layer `depth` - 1.
    streams: stream heads of `depth`, nearest first. KV of wrong guesses is overwritten later.
    """
    rolling = [_Rolling(row, list(row.tokens)) for row in rows]
    live = rolling
    while live:
        decoder.num_passes += 1
        batch = build_batch([BatchRow(one.rollout.slots[: one.total], len(one.new)) for one in live], decoder.device)
        hidden = decoder.run(decoder.embed(list(chain.from_iterable(one.new for one in live))), batch, kv, 0, depth)
        if boundary is not None:
            boundary.index_copy_(0, batch.slots, hidden)
        last = _take(decoder, hidden, batch.offsets[1:], live)
        kept = [at for at, one in zip(last, live, strict=True) if one.goes_on]
        live = [one for one in live if one.goes_on]
        if streams and live:
            _guess(decoder, hidden[kept], live, streams)
    return [one.drafted for one in rolling]


def _take(decoder: Decoder, hidden: Tensor, ends: Sequence[int], live: Sequence[_Rolling]) -> list[int]:
    """Every row takes its picks. ends: end of each row in the batch. Returns the index of each last pick's state."""
    wanted = [end - 1 - back for end, one in zip(ends, live, strict=True) for back in range(one.num_guesses, -1, -1)]
    sampling = [one.rollout.sampling for one in live for _ in range(one.num_guesses + 1)]
    positions = [one.total - back for one in live for back in range(one.num_guesses, -1, -1)]
    picks = iter(zip(*decoder.pick_with_confidence(decoder.logits(hidden, wanted), sampling, positions), strict=True))
    last = []
    for end, one in zip(ends, live, strict=True):
        first = end - 1 - one.num_guesses
        last.append(first + one.take(list(islice(picks, one.num_guesses + 1))))
    return last


def _guess(decoder: Decoder, states: Tensor, live: Sequence[_Rolling], streams: Sequence[StreamHead]) -> None:
    """Adds guesses after the last pick of each row, as many as its draft has room for. states: [rows, hidden]."""
    for stream, head in enumerate(streams, 1):
        fits = [at for at, one in enumerate(live) if len(one.drafted) + stream < one.rollout.length]
        live = [live[at] for at in fits]
        if not live:
            return
        states = next_state(head, states[fits], decoder.embed([one.new[-1] for one in live]))
        logits = decoder.logits(states, range(len(live)))
        picks = decoder.pick(logits, [one.rollout.sampling for one in live], [one.total for one in live])
        for one, token in zip(live, picks, strict=True):
            one.guess(max(token, 0))  # any token will do for NO_PICK
