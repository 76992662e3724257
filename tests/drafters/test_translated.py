"""A drafter behind a translation: the contract of a client that drafts in turn, and exact text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest

from drafters.client import LocalDraftClient
from drafters.translated import TranslatedDraftClient, reached
from drafters.translation import Translation
from drafters.worker import DraftWorker
from model.decoder import Decoder
from protocol.branch import AheadClient
from protocol.draft import DraftBlock, DraftReply, DraftRequest, DraftStatus
from protocol.request import GREEDY
from protocol.stats import TranslationCounts
from tests.drafters.clients import DEPTH, TOKENS, draft, request, row
from tests.reference.drafting import draft_from_scratch

VOCAB = 160  # of the drafter
SHIFTED = Translation({token: ((token + 7) % VOCAB,) for token in range(VOCAB)}, {})
"""Every token is in both, under another id."""
SHIFTED = replace(SHIFTED, to_target={own[0]: token for token, own in SHIFTED.to_drafter.items()})


def uneven(seed: int) -> Translation:
    """Some of the target's tokens are two or three of the drafter's, and have no counterpart there."""
    random = Random(seed)
    to_drafter = {
        token: tuple(random.choices(range(VOCAB), k=random.randint(2, 3))) if random.random() < 0.3 else own
        for token, own in SHIFTED.to_drafter.items()
    }
    return Translation(to_drafter, {own[0]: token for token, own in to_drafter.items() if len(own) == 1})


def read(translation: Translation, tokens: Sequence[int]) -> list[int]:
    return [own for tokens_of_one in translation.read(tokens) for own in tokens_of_one]


def expected(decoder: Decoder, translation: Translation, tokens: Sequence[int], length: int) -> tuple[int, ...]:
    """The drafter's greedy text behind the translated tokens, back in the target's."""
    drafted = draft_from_scratch(decoder, read(translation, tokens), length, DEPTH, GREEDY)
    return translation.write([token for token, _ in drafted])


@pytest.mark.parametrize("seed", range(6))
def test_rounds_get_what_the_drafter_writes_behind_the_same_text(
    worker: DraftWorker, llama: Decoder, seed: int
) -> None:
    random, translation, tokens = Random(seed), uneven(seed), list(TOKENS)
    client, sent = TranslatedDraftClient(LocalDraftClient(worker, "target"), translation), 0
    for round_id in range(1, 7):
        (block,) = draft(client, row(1, tokens, 4, start=sent), round_id=round_id)
        assert (block.status, block.base_length) == (DraftStatus.OK, len(tokens))
        assert block.tokens == expected(llama, translation, tokens, 4)
        assert len(block.tokens) == len(block.confidences)
        sent = len(tokens)
        tokens += [*block.tokens[: random.randint(0, 4)], random.randrange(VOCAB)]


def test_context_is_counted_once_and_what_both_have_apart(worker: DraftWorker) -> None:
    translation = uneven(seed=1)
    client = TranslatedDraftClient(LocalDraftClient(worker, "target"), translation)
    client.open(request(row(1, TOKENS[:5], 0)))
    draft(client, row(1, TOKENS, 1, start=5))
    draft(client, row(1, TOKENS, 1), round_id=2)
    assert client.counts == TranslationCounts(len(TOKENS), sum(map(translation.shares, TOKENS)))


def test_what_was_never_handed_over_here_is_asked_for_again(worker: DraftWorker, llama: Decoder) -> None:
    client = TranslatedDraftClient(LocalDraftClient(worker, "target"), SHIFTED)
    (first, second) = draft(client, row(1, TOKENS, 2), row(2, TOKENS, 2, start=3))
    assert (first.status, second.status) == (DraftStatus.OK, DraftStatus.NEED_CONTEXT)
    (alone,) = draft(client, row(2, TOKENS, 2, start=3), round_id=2)
    assert (alone.status, alone.base_length) == (DraftStatus.NEED_CONTEXT, len(TOKENS))
    (again,) = draft(client, row(2, TOKENS, 2), round_id=3)
    assert again.tokens == expected(llama, SHIFTED, TOKENS, 2)


def test_a_pool_that_forgot_gets_the_context_anew(worker: DraftWorker, llama: Decoder) -> None:
    client = TranslatedDraftClient(LocalDraftClient(worker, "target"), uneven(seed=2))
    draft(client, row(1, TOKENS, 2))
    worker.drop("target")
    (block,) = draft(client, row(1, [*TOKENS, 5], 2, start=len(TOKENS)), round_id=2)
    assert block.status is DraftStatus.NEED_CONTEXT
    (block,) = draft(client, row(1, [*TOKENS, 5], 2), round_id=3)
    assert block.tokens == expected(llama, uneven(seed=2), [*TOKENS, 5], 2)


def test_closing_forgets_on_both_sides(worker: DraftWorker) -> None:
    client = TranslatedDraftClient(LocalDraftClient(worker, "target"), SHIFTED)
    draft(client, row(1, TOKENS, 2))
    client.close([1])
    assert worker.stats().num_sequences == 0
    (block,) = draft(client, row(1, TOKENS, 2, start=4), round_id=2)
    assert block.status is DraftStatus.NEED_CONTEXT


class Lying:
    """Answers with blocks that fit no question."""

    def __init__(self, *blocks: DraftBlock) -> None:
        self.blocks = blocks

    def open(self, request: DraftRequest) -> None: ...

    def draft(self, request: DraftRequest) -> DraftReply | None:
        return DraftReply(request.incarnation, request.round_id, self.blocks) if self.blocks else None

    def close(self, sequence_ids: object) -> None: ...


def test_answers_to_other_questions_are_left_out_and_lies_are_cut() -> None:
    blocks = (
        DraftBlock(1, len(TOKENS), DraftStatus.OK, (-4, 10**9), (0.5, 0.5)),
        DraftBlock(2, len(TOKENS) + 1, DraftStatus.OK, (9,), (0.5,)),
        DraftBlock(3, len(TOKENS), DraftStatus.OK, (9,), (0.5,)),
    )
    client = TranslatedDraftClient(Lying(*blocks), SHIFTED)
    (block,) = draft(client, row(1, TOKENS, 2), row(2, TOKENS, 2))
    assert (block.sequence_id, block.tokens, block.confidences) == (1, (), ())
    assert TranslatedDraftClient(Lying(), SHIFTED).draft(request(row(1, TOKENS, 2))) is None


def test_it_drafts_in_turn_only_and_one_vocabulary_needs_none(worker: DraftWorker) -> None:
    client = LocalDraftClient(worker, "target")
    assert reached(client, None) is client
    assert not isinstance(reached(client, SHIFTED), AheadClient)
