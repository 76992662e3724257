"""A target's side of drafting: which tokens the pool has yet to see, and what its answers mean.

Per sequence one integer says how many committed tokens were handed over. The pool forgetting (NEED_CONTEXT)
sets it back to 0; a full pool (BUSY) silences the sequence for a growing number of rounds, so that asking
costs nothing when the pool is too small, and a round in which the pool serves only a few of many rows is
not drafted, since all of them would wait for it; past the drafter's context (TOO_LONG) it is silent for good.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from protocol.draft import DraftBlock, DraftClient, DraftRequest, DraftRow, DraftStatus
from protocol.plan import DepthRule
from targets.sequence import Sequence as Decoding

MAX_SILENCE = 64  # rounds
MIN_SHARE = 0.25  # of the rows that want a draft


@dataclass(slots=True)
class _Ask:
    sent: int = 0
    silent_until: float = 0  # round number
    silence: int = 1


@dataclass(slots=True)
class Drafting:
    client: DraftClient
    incarnation: str
    vocab_size: int  # of the target; a drafter's may be padded beyond it
    num_missed: int = 0
    _round: int = 0
    _asks: dict[int, _Ask] = field(default_factory=dict)

    def open(self, sequences: Iterable[Decoding], depth: DepthRule) -> None:
        """Hand over the context of admitted sequences, so that the pool prefills while the target does."""
        rows = tuple(self._row(sequence, length=0) for sequence in sequences)
        if rows:
            self.client.open(DraftRequest(self.incarnation, self._round, depth, rows))

    def draft(self, decoding: Sequence[Decoding], lengths: Sequence[int], depth: DepthRule) -> list[tuple[int, ...]]:
        """A draft for each sequence, at most its length long and empty when there is none to be had."""
        self._round += 1
        wanting = {s.id: (s, length) for s, length in zip(decoding, lengths, strict=True) if length}
        asking = [number for number in wanting if self._ask(number).silent_until <= self._round]
        if len(asking) <= MIN_SHARE * len(wanting):
            return [()] * len(decoding)
        rows = {number: self._row(*wanting[number]) for number in asking}
        reply = self.client.draft(DraftRequest(self.incarnation, self._round, depth, tuple(rows.values())))
        if reply is None:
            self._take_back(rows.values())
            return [()] * len(decoding)
        blocks = {block.sequence_id: block for block in reply.blocks}
        return [self._read(rows.get(sequence.id), blocks.get(sequence.id)) for sequence in decoding]

    def close(self, sequence: Decoding) -> None:
        if self._asks.pop(sequence.id, None) is not None:
            self.client.close([sequence.id])

    def _take_back(self, rows: Iterable[DraftRow]) -> None:
        """Nobody may have seen these rows; handing tokens over twice is harmless, a gap is not."""
        self.num_missed += 1
        for row in rows:
            self._ask(row.sequence_id).sent = row.start

    def _ask(self, sequence_id: int) -> _Ask:
        return self._asks.setdefault(sequence_id, _Ask())

    def _row(self, sequence: Decoding, length: int) -> DraftRow:
        ask = self._ask(sequence.id)
        start, ask.sent = ask.sent, len(sequence.tokens)
        return DraftRow(sequence.id, start, tuple(sequence.tokens[start:]), length, sequence.request.sampling)

    def _read(self, row: DraftRow | None, block: DraftBlock | None) -> tuple[int, ...]:
        if row is None or block is None or block.base_length != row.base_length:
            return ()
        ask = self._ask(row.sequence_id)
        match block.status:
            case DraftStatus.OK:
                ask.silence = 1
            case DraftStatus.NEED_CONTEXT:
                ask.sent = 0
            case DraftStatus.BUSY:
                ask.sent = 0
                ask.silence = min(2 * ask.silence, MAX_SILENCE)
                ask.silent_until = self._round + ask.silence
            case DraftStatus.TOO_LONG:
                ask.silent_until = float("inf")
        return tuple(takewhile(lambda token: token < self.vocab_size, block.tokens[: row.length]))
