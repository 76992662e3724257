"""A target's side of drafting: which tokens the pool has yet to see, and what its answers mean.

Per sequence one integer says how many committed tokens were handed over. The pool forgetting (NEED_CONTEXT)
sets it back to 0; a full pool (BUSY) silences the sequence for a growing number of rounds, so that asking
costs nothing when the pool is too small, and a round in which the pool serves only a few of many rows is
not drafted, since all of them would wait for it; past the drafter's context (TOO_LONG) it is silent for good.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

from protocol.branch import AheadRequest, AheadRow
from protocol.draft import DraftBlock, DraftClient, DraftReply, DraftRequest, DraftRow, DraftStatus
from protocol.plan import DepthRule, Plan
from router.confidence import Calibration
from targets.sequence import Sequence as Decoding

MAX_SILENCE = 64  # rounds
MIN_SHARE = 0.25  # of the rows that want a draft


@dataclass(slots=True)
class _Ask:
    sent: int = 0
    known: bool = False  # a draft came that had to wait for all of it
    silent_until: float = 0  # round number
    silence: int = 1


@dataclass(frozen=True, slots=True)
class Drafts:
    """blocks: one per decoding sequence, None where no draft is to be had, cut to the target's vocabulary.

    num_fed: committed tokens that the pool had to run for each row before it could draft, at most: what was handed
    over, and before a first draft the whole context. wait_ms: queued at the pool. answered: False for a round that
    asked in vain. ahead: some were at hand.
    """

    blocks: tuple[DraftBlock | None, ...]
    num_fed: tuple[int, ...] = ()
    wait_ms: float = 0.0
    answered: bool = True
    ahead: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it was sent. rows: by sequence; `taken` is where its answer goes."""

    request: DraftRequest
    rows: dict[int, DraftRow]


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

    @property
    def round_id(self) -> int:
        """Of the last round that was drafted for."""
        return self._round

    def num_unseen(self, sequence: Decoding) -> int:
        """Committed tokens that the pool has yet to be handed."""
        ask = self._asks.get(sequence.id)
        return len(sequence.tokens) - (ask.sent if ask else 0)

    def is_silent(self, sequence: Decoding) -> bool:
        """Whether a draft for this sequence would not be asked for in the coming round."""
        ask = self._asks.get(sequence.id)
        return ask is not None and ask.silent_until > self._round + 1

    def draft(self, decoding: Sequence[Decoding], plan: Plan) -> Drafts:
        """Drafts of at most the planned lengths; depth must be given where there is any."""
        asked = self.ask(decoding, plan)
        return self.taken(asked, decoding, self.client.draft(asked.request) if asked else None)

    def ask(self, decoding: Sequence[Decoding], plan: Plan) -> Asked | None:
        """What to send; None when nobody is asked for. Rounds that ask for nothing count too."""
        self._round += 1
        wanting = [index for index, length in enumerate(plan.lengths) if length]
        asking = [index for index in wanting if self._ask(decoding[index].id).silent_until <= self._round]
        if plan.depth is None or len(asking) <= MIN_SHARE * len(wanting):
            return None
        rows = {decoding[index].id: self._planned_row(decoding[index], plan, index) for index in asking}
        return Asked(DraftRequest(self.incarnation, self._round, plan.depth, tuple(rows.values())), rows)

    def taken(self, asked: Asked | None, decoding: Sequence[Decoding], reply: DraftReply | None) -> Drafts:
        """The answer to what was asked for, for these sequences, which may be others by now."""
        nothing = Drafts((None,) * len(decoding), (0,) * len(decoding))
        if asked is None:
            return nothing
        if reply is None:
            self._take_back(asked)
            return replace(nothing, answered=False)
        rows = asked.rows
        blocks = {block.sequence_id: block for block in reply.blocks}
        # Before an answer is read, which makes a context known.
        num_fed = tuple(self._num_fed(rows[sequence.id]) if sequence.id in rows else 0 for sequence in decoding)
        read = tuple(self._read(rows.get(sequence.id), blocks.get(sequence.id)) for sequence in decoding)
        return Drafts(read, num_fed, reply.wait_ms)

    def ahead(
        self,
        decoding: Sequence[Decoding],
        plan: Plan,
        windows: Sequence[Sequence[int]],
        fan_out: int,
        calibration: Calibration,
    ) -> AheadRequest | None:
        """What the pool may draft while these windows are verified, and the tokens that it has not seen.

        Of the round of the last `draft`, for the rows that it might have asked for; None when there is none. No branch
        is longer than what is left after its shortest outcome.
        """
        rows = []
        for index, (sequence, length) in enumerate(zip(decoding, plan.lengths, strict=True)):
            length = min(length, sequence.remaining - 2)
            if length > 0 and self._ask(sequence.id).silent_until <= self._round:
                own, floor = self._own(plan, index)
                rule = own or plan.depth
                power = calibration.power(rule.exits[-1]) if rule else 1.0
                context = self._row(sequence, 0, own)
                rows.append(AheadRow(context, tuple(windows[index]), length, fan_out, floor, power))
        if plan.depth is None or not rows:
            return None
        return AheadRequest(self.incarnation, self._round, plan.depth, tuple(rows))

    def read(self, block: DraftBlock, length: int) -> DraftBlock:
        """At most its first `length` tokens, and none beyond the target's vocabulary."""
        known = sum(1 for _ in takewhile(lambda token: 0 <= token < self.vocab_size, block.tokens[:length]))
        return block if known == len(block.tokens) else _cut(block, known)

    def close(self, sequence: Decoding) -> None:
        if self._asks.pop(sequence.id, None) is not None:
            self.client.close([sequence.id])

    def _take_back(self, asked: Asked) -> None:
        """Nobody may have seen it; handing tokens over twice is harmless, a gap is not."""
        self.num_missed += 1
        for row in asked.request.rows:
            if row.sequence_id in self._asks:
                self._asks[row.sequence_id].sent = row.start

    def _ask(self, sequence_id: int) -> _Ask:
        return self._asks.setdefault(sequence_id, _Ask())

    def _num_fed(self, row: DraftRow) -> int:
        return len(row.tokens) if self._ask(row.sequence_id).known else row.base_length

    def _planned_row(self, sequence: Decoding, plan: Plan, index: int) -> DraftRow:
        own, floor = self._own(plan, index)
        return self._row(sequence, plan.lengths[index], own, floor)

    def _own(self, plan: Plan, index: int) -> tuple[DepthRule | None, float]:
        """The depth of a row, and its floor: a length that was asked for is drafted."""
        own = plan.own[index] if plan.own else None
        return own, (plan.floor if own is None else 0.0)

    def _row(
        self,
        sequence: Decoding,
        length: int,
        depth: DepthRule | None = None,
        floor: float = 0.0,
    ) -> DraftRow:
        ask = self._ask(sequence.id)
        start, ask.sent = ask.sent, len(sequence.tokens)
        tokens = tuple(sequence.tokens[start:])
        return DraftRow(sequence.id, start, tokens, length, sequence.request.sampling, depth, floor)

    def _read(self, row: DraftRow | None, block: DraftBlock | None) -> DraftBlock | None:
        if row is None:
            return None
        ask = self._ask(row.sequence_id)
        if block is None or block.base_length != row.base_length:
            ask.sent = min(ask.sent, row.start)  # its replica may not have seen it
            return None
        match block.status:
            case DraftStatus.OK:
                ask.silence = 1
                ask.known = True
            case DraftStatus.NEED_CONTEXT:
                ask.sent, ask.known = 0, False
            case DraftStatus.BUSY:
                ask.sent, ask.known = 0, False
                ask.silence = min(2 * ask.silence, MAX_SILENCE)
                ask.silent_until = self._round + ask.silence
            case DraftStatus.TOO_LONG:
                ask.silent_until = float("inf")
            case DraftStatus.NOT_YET:
                pass
        return self.read(block, row.length)


def _cut(block: DraftBlock, length: int) -> DraftBlock:
    return replace(
        block,
        tokens=block.tokens[:length],
        exits=block.exits[:length],
        confidences=block.confidences[:length],
    )
