"""What a target and a drafter do with a decoder: a step, and drafting ahead, where each token is fed back for the next.

These are the plain ones; a decoder may do the same in one call. A draft whose exit has stream heads guesses ahead of
itself and so needs fewer passes for the same tokens (model/streams.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from math import prod
from typing import TYPE_CHECKING

from torch import Tensor

from model.batch import RaggedBatch, Row, build_batch
from model.kv import PagedKV
from model.pages import Slots
from model.streams import StreamHead, next_state
from protocol.request import SamplingParams

if TYPE_CHECKING:
    from model.decoder import Decoder

Drafted = list[tuple[int, float, int]]  # tokens with their confidences and runner-ups


@dataclass(frozen=True, slots=True)
class Rollout:
    """tokens: those at positions [start, start + len(tokens)), not yet run. length: how many to draft, at least 1.

    slots: of every position up to the last that may be fed, start + len(tokens) + length - 2.
    floor: the first token at which the product of the confidences so far is at most this is the row's last
        (Kangaroo's early stop, Liu et al. 2024, for the whole draft in place of one token). 0: none is.
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
        """Whether there is more to draft."""
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
    """All layers over the batch, and the picks of the wanted tokens. positions: those that the picks will take."""
    hidden = decoder.run(decoder.embed(token_ids), batch, kv, 0, decoder.config.num_layers)
    return decoder.pick(decoder.logits(hidden, wanted), sampling, positions)


@dataclass(slots=True)
class _Rolling:
    """A row on its way. new: the tokens of its next pass, of which the last `num_guesses` may be wrong."""

    rollout: Rollout
    new: list[int]
    num_guesses: int = 0
    drafted: Drafted = field(default_factory=list)

    @property
    def total(self) -> int:
        """Positions when its next pass is done."""
        return self.rollout.total + len(self.drafted) + self.num_guesses

    @property
    def goes_on(self) -> bool:
        return self.rollout.goes_on(self.drafted)

    def take(self, picks: Drafted) -> int:
        """Of the picks behind the last certain token and behind each guess: up to the first guess that was wrong.
        Returns how many guesses were right and were needed.
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
    """What each row drafts: `length` tokens, or fewer where it has a floor. The last one has no KV yet.

    boundary: [num_slots, hidden] in the decoder's hidden_dtype, where the hidden states on leaving `depth` are kept.
    streams: of `depth`, the nearest first; they save passes. What is written of a wrong guess is of no account.
    """
    rolling = [_Rolling(row, list(row.tokens)) for row in rows]
    live = rolling
    while live:
        decoder.num_passes += 1
        batch = build_batch([Row(one.rollout.slots[: one.total], len(one.new)) for one in live], decoder.device)
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
    """Every row takes its picks. Returns which hidden state the last one of each came from. ends: of the rows."""
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
    """Guesses behind the last pick of each row, as many as its draft has room for. states: [rows, hidden]."""
    for stream, head in enumerate(streams, 1):
        fits = [at for at, one in enumerate(live) if len(one.drafted) + stream < one.rollout.length]
        live = [live[at] for at in fits]
        if not live:
            return
        states = next_state(head, states[fits], decoder.embed([one.new[-1] for one in live]))
        logits = decoder.logits(states, range(len(live)))
        picks = decoder.pick(logits, [one.rollout.sampling for one in live], [one.total for one in live])
        for one, token in zip(live, picks, strict=True):
            one.guess(max(token, 0))  # for NO_PICK any token does
