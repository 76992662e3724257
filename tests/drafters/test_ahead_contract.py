"""What every client keeps to that has the pool draft ahead (the clients: tests/drafters/clients.py)."""

from __future__ import annotations

import time
from collections.abc import Callable

from drafters.worker import DraftWorker
from model.decoder import Decoder
from protocol.branch import AheadClient, AheadRequest, AheadRow, Branch, prefix_hash
from protocol.draft import DraftStatus
from tests.drafters.clients import DEPTH, PATIENCE_S, SAMPLED, TOKENS, Connect, draft, eventually, row
from tests.reference.drafting import draft_from_scratch


def ahead(
    client: AheadClient,
    tokens: list[int],
    window: tuple[int, ...],
    start: int = 0,
    round_id: int = 2,
) -> None:
    asked = AheadRow(row(1, tokens, 0, start), window, length=3)
    client.ahead(AheadRequest("target", round_id, DEPTH, (asked,)))


def gather(client: AheadClient, done: Callable[[list[Branch]], bool]) -> list[Branch]:
    """What comes whole, until it is enough."""
    came: list[Branch] = []
    until = time.monotonic() + PATIENCE_S
    while not done(came) and time.monotonic() < until:
        came += (branch for branch in client.branches(0.05) if not branch.goes_on)
    assert done(came)
    return came


def next_tokens(llama: Decoder, tokens: list[int], count: int) -> tuple[int, ...]:
    """Not while the worker may be at work: a decoder is for one thread."""
    return tuple(token for token, _ in draft_from_scratch(llama, tokens, count, DEPTH, SAMPLED))


def test_a_branch_comes_behind_the_proposal_and_one_more_token_drafted_as_from_scratch(
    connect: Connect, worker: DraftWorker, llama: Decoder
) -> None:
    with connect(worker, "target", PATIENCE_S) as client:
        assert list(client.branches()) == []
        (block,) = draft(client, row(1, TOKENS, 2))
        ahead(client, TOKENS, block.tokens, start=len(TOKENS))
        (branch,) = gather(client, lambda came: len(came) == 1)
    before = [*TOKENS, *next_tokens(llama, TOKENS, 3)]
    assert (branch.sequence_id, branch.base_length, branch.key) == (1, len(before), prefix_hash(before))
    assert branch.tokens == next_tokens(llama, before, 3)
    assert len(branch.confidences) == 3


def test_after_a_branch_has_won_a_draft_goes_on_from_it(connect: Connect, worker: DraftWorker, llama: Decoder) -> None:
    committed = [*TOKENS, *next_tokens(llama, TOKENS, 3)]
    with connect(worker, "target", PATIENCE_S) as client:
        (block,) = draft(client, row(1, TOKENS, 2))
        ahead(client, TOKENS, block.tokens, start=len(TOKENS))
        gather(client, lambda came: any(branch.key == prefix_hash(committed) for branch in came))
        (again,) = draft(client, row(1, committed, 3, start=len(TOKENS)), round_id=3)
    assert again.tokens == next_tokens(llama, committed, 3)


def test_drafting_ahead_for_an_unknown_sequence_brings_nothing_and_no_error(
    connect: Connect, worker: DraftWorker
) -> None:
    with connect(worker, "target", PATIENCE_S) as client:
        ahead(client, TOKENS, (1, 2), start=5)
        (refused,) = draft(client, row(1, TOKENS, 2, start=5), round_id=3)
        assert refused.status is DraftStatus.NEED_CONTEXT
        assert list(client.branches()) == []


def test_closing_ends_what_is_drafted_ahead(connect: Connect, worker: DraftWorker) -> None:
    with connect(worker, "target", PATIENCE_S) as client:
        (block,) = draft(client, row(1, TOKENS, 2))
        ahead(client, TOKENS, block.tokens, start=len(TOKENS))
        client.close([1])
        eventually(lambda: worker.stats().num_free_pages == worker.stats().num_pages)


def test_branches_go_to_the_target_that_asked(connect: Connect, worker: DraftWorker) -> None:
    with connect(worker, "target", PATIENCE_S) as client, connect(worker, "other", PATIENCE_S) as other:
        (block,) = draft(client, row(1, TOKENS, 2))
        ahead(client, TOKENS, block.tokens, start=len(TOKENS))
        gather(client, lambda came: len(came) == 1)
        assert list(other.branches()) == []
