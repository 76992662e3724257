"""A target's side of drafting: which tokens the pool has yet to see, and what its answers mean.

One integer of a sequence says how many committed tokens were handed over. NEED_CONTEXT, the pool forgot, sets it back
to 0. BUSY and NOT_YET silence the sequence for a growing number of rounds, so that asking costs nothing while the pool
is too small or reads a context, TOO_LONG for good.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from protocol.draft import DraftBlock, DraftClient, DraftRequest, DraftRow, DraftStatus
from protocol.plan import Plan, SequenceView
from protocol.record import Origin
from targets.proposals import Proposal, Proposals, nothing
from targets.sequence import Sequence as Decoding

MAX_SILENCE = 64  # rounds
MOST_VAIN = 6  # contexts read in vain that count: then one of 64 admissions is handed over
MAX_NOT_YET = 8  # rounds; four targets that share two cores with their pool lose a fifth where they ask in each
MIN_SHARE = 0.25  # of the rows that want a draft: for fewer that the pool serves, the others do not wait


@dataclass(slots=True)
class _Ask:
    sent: int = 0
    opened: bool = False  # all of it was handed over at admission only: the pool may not have read it yet
    known: bool = False  # a draft came that had to wait for all of it
    silent_until: float = 0  # round number
    silence: int = 1

    @property
    def is_waiting(self) -> bool:
        """Whether the pool was handed its context, and may yet draft for it for the first time."""
        return self.sent > 0 and not self.known and math.isfinite(self.silent_until)


@dataclass(slots=True)
class Drafting:
    """The target's side of drafting: what each sequence has yet to hand over, and when to leave the pool alone."""

    client: DraftClient
    incarnation: str
    vocab_size: int  # of the target; a drafter's may be padded beyond it
    reads_meanwhile: bool = False  # the pool reads what it was handed while the target works
    round_id: int = 0  # of the last call of `draft`
    _num_vain: int = 0  # contexts in a row that were handed over and never drafted behind
    _num_passed: int = 0  # admissions since contexts were handed over
    _asks: dict[int, _Ask] = field(default_factory=dict)

    def open(self, sequences: Iterable[Decoding], depth: int) -> None:
        """Hand over the context of admitted sequences, so that the pool prefills while the target does. A pool that is
        behind, or reads in vain, is handed fewer.
        """
        if self.reads_meanwhile and not self._is_of_use():
            return
        rows = tuple(self._row(sequence, length=0) for sequence in sequences)
        for row in rows:
            self._ask(row.sequence_id).opened = not self.reads_meanwhile
        self.client.open(DraftRequest(self.incarnation, self.round_id, depth, rows))

    def _is_of_use(self) -> bool:
        """Whether to hand over what is admitted. Not while another waits for its first draft; and where contexts were
        read in vain, of 2, 4, 8 ... admissions one.
        """
        if any(ask.is_waiting for ask in self._asks.values()):
            return False
        self._num_passed += 1
        if self._num_passed < 2 ** min(self._num_vain, MOST_VAIN):
            return False
        self._num_passed = 0
        return True

    def heard(self, sequence: Decoding) -> None:
        """A draft came, so the pool has read its context."""
        self._ask(sequence.id).known, self._num_vain = True, 0

    def view(self, sequence: Decoding) -> SequenceView:
        """What a policy may see of a sequence: also how much the pool has yet to be handed, and whether it is asked."""
        ask = self._asks.get(sequence.id, _Ask())
        seen = 0 if ask.opened else ask.sent
        return sequence.view(len(sequence.tokens) - seen, ask.silent_until <= self.round_id + 1)

    def draft(self, decoding: Sequence[Decoding], plan: Plan) -> Proposals:
        """One round: drafts of at most the planned lengths. Rounds that ask for nothing count too."""
        self.round_id += 1
        rows = self._rows(decoding, plan)
        if plan.depth is None or not rows:
            return nothing(len(decoding))
        request = DraftRequest(self.incarnation, self.round_id, plan.depth, tuple(rows.values()))
        reply = self.client.draft(request)
        if reply is None:
            self._take_back(request)
            return nothing(len(decoding), answered=False)
        # Before an answer is read, which makes a context known.
        num_fed = tuple(self._num_fed(rows[index]) if index in rows else 0 for index in range(len(decoding)))
        blocks = {block.sequence_id: block for block in reply.blocks}
        proposals = (self._read(plan, index, rows.get(index), blocks) for index in range(len(decoding)))
        return Proposals(tuple(proposals), num_fed, reply.wait_ms)

    def context(self, sequence: Decoding, depth: int | None) -> DraftRow | None:
        """What the pool has not seen of a sequence that it may draft ahead for; None while that is silent, and for one
        that it knows nothing of: nobody would hear that it is refused.
        """
        if self.is_unknown(sequence) or self._ask(sequence.id).silent_until > self.round_id:
            return None
        return self._row(sequence, 0, depth)

    def is_unknown(self, sequence: Decoding) -> bool:
        """Whether the pool has yet to be handed all of it, which only a request for a draft does."""
        ask = self._asks.get(sequence.id)
        return ask is None or not ask.sent

    def read(self, proposal: Proposal, length: int) -> Proposal | None:
        """At most its first `length` tokens, and none beyond the target's vocabulary; None where that leaves none."""
        own = proposal.cut(length)
        known = sum(1 for _ in takewhile(lambda token: 0 <= token < self.vocab_size, own.tokens))
        return (own if known == len(own.tokens) else own.cut(known)) if known else None

    def close(self, sequence: Decoding) -> None:
        ask = self._asks.pop(sequence.id, None)
        if ask is not None:
            self._num_vain += ask.is_waiting
            self.client.close([sequence.id])

    def _rows(self, decoding: Sequence[Decoding], plan: Plan) -> dict[int, DraftRow]:
        """What to ask for, by row. A length that a request asked for itself is drafted to its end."""
        wanting = [index for index, length in enumerate(plan.lengths) if length]
        asking = [index for index in wanting if self._ask(decoding[index].id).silent_until <= self.round_id]
        rows = {}
        for index in asking if len(asking) > MIN_SHARE * len(wanting) else ():
            own = plan.own[index] if plan.own else None
            stop = plan.stop_probability if own is None else 0.0
            rows[index] = self._row(decoding[index], plan.lengths[index], own, stop)
        return rows

    def _row(
        self, sequence: Decoding, length: int, depth: int | None = None, stop_probability: float = 0.0
    ) -> DraftRow:
        ask = self._ask(sequence.id)
        start, ask.sent, ask.opened = ask.sent, len(sequence.tokens), False
        tokens, sampling = tuple(sequence.tokens[start:]), sequence.request.sampling
        advice = sequence.refusal if sequence.constraint else None, sequence.ruled
        return DraftRow(sequence.id, start, tokens, length, sampling, depth, stop_probability, *advice)

    def _take_back(self, request: DraftRequest) -> None:
        """The request may be lost. Handing tokens over twice is harmless, a gap is not."""
        for row in request.rows:
            if row.sequence_id in self._asks:
                self._asks[row.sequence_id].sent = row.start

    def _ask(self, sequence_id: int) -> _Ask:
        return self._asks.setdefault(sequence_id, _Ask())

    def _num_fed(self, row: DraftRow) -> int:
        return len(row.tokens) if self._ask(row.sequence_id).known else row.base_length

    def _read(self, plan: Plan, index: int, row: DraftRow | None, blocks: Mapping[int, DraftBlock]) -> Proposal | None:
        """What the pool drafted for a row; None where that is nothing, or no answer to this row."""
        block, depth = blocks.get(row.sequence_id) if row else None, plan.depth_of(index)
        if row is None or depth is None:
            return None
        ask = self._ask(row.sequence_id)
        if block is None or block.base_length != row.base_length:
            ask.sent = min(ask.sent, row.start)  # its replica may not have seen it
            return None
        match block.status:
            case DraftStatus.OK:
                ask.silence, ask.known, self._num_vain = 1, True, 0
            case DraftStatus.NEED_CONTEXT:
                ask.sent, ask.known = 0, False
            case DraftStatus.BUSY:
                ask.sent, ask.known = 0, False
                ask.silence = min(2 * ask.silence, MAX_SILENCE)
                ask.silent_until = self.round_id + ask.silence
            case DraftStatus.NOT_YET:
                ask.silent_until = self.round_id + min(ask.silence, MAX_NOT_YET)  # it may have been BUSY before
                ask.silence = min(2 * ask.silence, MAX_NOT_YET)
            case DraftStatus.TOO_LONG:
                ask.silent_until = float("inf")
        drafted = Proposal(block.tokens, block.confidences, Origin.FRESH, depth, row.length)
        return self.read(drafted, row.length)
