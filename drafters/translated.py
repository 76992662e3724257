"""A draft client for a drafter of another tokenizer, around the client that reaches it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, chain

from drafters.translation import Translation
from protocol.draft import DraftBlock, DraftClient, DraftReply, DraftRequest, DraftRow, DraftStatus, refusal
from protocol.request import GREEDY
from protocol.stats import TranslationCounts


class TranslatedDraftClient:
    """Asks in the drafter's tokens, and answers in the target's. Drafts in turn only.

    Noise belongs to a token and its position, and both differ between target and drafter here. So a draft is the
    drafter's likeliest text: a sampling target picks that more often than an independent sample.
    """

    def __init__(self, client: DraftClient, translation: Translation) -> None:
        self.counts = TranslationCounts()
        self._client = client
        self._translation = translation
        self._lengths: dict[int, list[int]] = {}  # by sequence: [i] drafter's tokens for the target's first i

    def open(self, request: DraftRequest) -> None:
        if (own := self._translated(request)).rows:
            self._client.open(own)

    def draft(self, request: DraftRequest) -> DraftReply | None:
        own = self._translated(request)
        reply = self._client.draft(own) if own.rows else DraftReply(request.incarnation, request.round_id, ())
        if reply is None:
            return None
        asked, rows = _by_sequence(own), _by_sequence(request)
        told = [self._told(block, rows[at], asked[at]) for block in reply.blocks if (at := block.sequence_id) in asked]
        unread = [refusal(row, DraftStatus.NEED_CONTEXT) for at, row in rows.items() if at not in asked]
        return replace(reply, blocks=(*(block for block in told if block is not None), *unread))

    def close(self, sequence_ids: Sequence[int]) -> None:
        for sequence_id in sequence_ids:
            self._lengths.pop(sequence_id, None)
        self._client.close(sequence_ids)

    def _translated(self, request: DraftRequest) -> DraftRequest:
        """The request in the drafter's tokens, without rows whose beginning was never handed over here."""
        own = map(self._row, request.rows)
        return replace(request, rows=tuple(row for row in own if row is not None))

    def _row(self, row: DraftRow) -> DraftRow | None:
        lengths = self._lengths.setdefault(row.sequence_id, [0])
        if row.start >= len(lengths):
            return None
        self._count(row.tokens[len(lengths) - 1 - row.start :])
        del lengths[row.start + 1 :]
        read = list(self._translation.read(row.tokens))
        lengths.extend(accumulate(map(len, read), initial=lengths.pop()))
        tokens = tuple(chain.from_iterable(read))
        return replace(row, start=lengths[row.start], tokens=tokens, sampling=GREEDY)

    def _told(self, block: DraftBlock, row: DraftRow, asked: DraftRow) -> DraftBlock | None:
        """The answer in the target's tokens; None if it answers another question."""
        if block.base_length != asked.base_length:
            return None
        tokens = self._translation.write(block.tokens)
        sure = block.confidences[: len(tokens)]
        return replace(block, base_length=row.base_length, tokens=tokens, confidences=sure)

    def _count(self, tokens: Sequence[int]) -> None:
        num_shared = sum(map(self._translation.shares, tokens))
        self.counts = TranslationCounts(self.counts.num_tokens + len(tokens), self.counts.num_shared + num_shared)


def reached(client: DraftClient, translation: Translation | None) -> DraftClient:
    """The client, behind the translation if there is one."""
    return client if translation is None else TranslatedDraftClient(client, translation)


def _by_sequence(request: DraftRequest) -> dict[int, DraftRow]:
    return {row.sequence_id: row for row in request.rows}
