"""What every client keeps to that has the pool draft ahead (the clients: tests/drafters/clients.py)."""

from __future__ import annotations

import time
from collections.abc import Callable

from drafters.worker import DraftWorker
from model.decoder import Decoder
from protocol.branch import AheadRequest, AheadRow, Branch, BranchSource, MirrorClient, prefix_hash
from protocol.draft import DraftStatus
from tests.drafters.clients import DEPTH, PATIENCE_S, SAMPLED, TOKENS, Connect, draft, eventually, row
from tests.reference.drafting import draft_from_scratch


def ahead(
    client: MirrorClient,
    tokens: list[int],
    window: tuple[int, ...],
    fan_out: int = 4,
    start: int = 0,
    round_id: int = 2,
) -> None:
    asked = AheadRow(row(1, tokens, 0, start), window, length=3, fan_out=fan_out)
    client.ahead(AheadRequest("target", round_id, DEPTH, (asked,)))


def gather(client: MirrorClient, done: Callable[[list[Branch]], bool]) -> list[Branch]:
    """What comes whole, until it is enough."""
    came: list[Branch] = []
    until = time.monotonic() + PATIENCE_S
    while not done(came) and time.monotonic() < until:
        came += (branch for branch in client.branches(0.05) if not branch.goes_on)
    assert done(came)
    return came


def next_tokens(llama: Decoder, tokens: list[int], count: int) -> tuple[int, ...]:
    """Not while the worker may be at work: a decoder is for one thread."""
    return tuple(token for token, _, _ in draft_from_scratch(llama, tokens, count, DEPTH, SAMPLED))


def test_branches_come_each_behind_an_outcome_and_drafted_as_from_scratch(
    connect: Connect, worker: DraftWorker, llama: Decoder
) -> None:
    with connect(worker, "target", PATIENCE_S) as client:
        assert list(client.branches()) == []
        (block,) = draft(client, row(1, TOKENS, 2))
        ahead(client, TOKENS, block.tokens, start=len(TOKENS))
        came = gather(client, lambda came: len(came) == 4)
    whole = [*TOKENS, *next_tokens(llama, TOKENS, 3)]
    texts = {
        prefix_hash([*whole[:accepted], token]): [*whole[:accepted], token]
        for accepted in range(len(TOKENS), len(whole))
        for token in range(llama.config.vocab_size)
    }
    assert {branch.sequence_id for branch in came} == {1}
    assert len({branch.key for branch in came}) == 4
    for branch in came:
        text = texts[branch.key]
        assert branch.base_length == len(text)
        assert branch.tokens == next_tokens(llama, text, 3)
        assert len(branch.exits) == len(branch.confidences) == 3
        assert (branch.source is BranchSource.FULL) is (text == whole)


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
        gather(client, lambda came: len(came) == 4)
        assert list(other.branches()) == []
