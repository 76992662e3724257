"""What every draft client keeps to, whatever carries the messages (the clients: tests/drafters/clients.py)."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from unittest.mock import patch

import pytest

from drafters.picks import PassRow, Pick
from drafters.worker import DraftWorker
from link.connection import Connection
from model.decoder import Decoder
from protocol.draft import DraftBlock, DraftRequest, DraftStatus
from tests.deployments.harness import Clock
from tests.drafters.clients import DEPTH, PATIENCE_S, SAMPLED, TOKENS, Connect, draft, eventually, request, row
from tests.reference.drafting import draft_from_scratch

FOREVER_S = 1e5  # who waits at all does not come back while a test lasts


def test_every_row_is_answered_with_the_drafters_own_tokens_and_confidences(
    connect: Connect, worker: DraftWorker, llama: Decoder
) -> None:
    with connect(worker, "target", PATIENCE_S) as client:
        blocks = draft(client, row(1, TOKENS, 4), row(2, TOKENS[:3], 1), round_id=7)
    assert [(block.sequence_id, block.base_length) for block in blocks] == [(1, 8), (2, 3)]
    for block, tokens, length in zip(blocks, (TOKENS, TOKENS[:3]), (4, 1), strict=True):
        expected = draft_from_scratch(llama, tokens, length, DEPTH, SAMPLED)
        assert block.status is DraftStatus.OK
        assert block.tokens == tuple(token for token, _ in expected)
        assert block.confidences == pytest.approx([confidence for _, confidence in expected], abs=1e-4)


def test_the_next_round_carries_only_what_is_new(connect: Connect, worker: DraftWorker, llama: Decoder) -> None:
    with connect(worker, "target", PATIENCE_S) as client:
        (first,) = draft(client, row(1, TOKENS, 4))
        committed = [*TOKENS, *first.tokens[:2], 5]
        (second,) = draft(client, row(1, committed, 3, start=len(TOKENS)), round_id=2)
    expected = draft_from_scratch(llama, committed, 3, DEPTH, SAMPLED)
    assert second.base_length == len(committed)
    assert second.tokens == tuple(token for token, _ in expected)


def test_opening_hands_over_context_so_that_a_draft_needs_none(
    connect: Connect, worker: DraftWorker, llama: Decoder
) -> None:
    with connect(worker, "target", PATIENCE_S) as client:
        client.open(request(row(1, TOKENS, 0)))
        (block,) = draft(client, row(1, [*TOKENS, 9], 2, start=len(TOKENS)))
    expected = draft_from_scratch(llama, [*TOKENS, 9], 2, DEPTH, SAMPLED)
    assert block.tokens == tuple(token for token, _ in expected)


def test_a_row_may_have_a_depth_of_its_own_and_a_floor_to_end_at(
    connect: Connect, worker: DraftWorker, llama: Decoder
) -> None:
    own = 4
    plain = draft_from_scratch(llama, TOKENS, 6, own, SAMPLED)
    floor = 0.5 * (plain[0][1] * plain[1][1] + plain[0][1] * plain[1][1] * plain[2][1])
    with connect(worker, "target", PATIENCE_S) as client:
        blocks = draft(client, replace(row(1, TOKENS, 6), depth=own, stop_probability=floor), row(2, TOKENS, 6))
    assert blocks[0].tokens == tuple(token for token, _ in plain[:3])
    expected = draft_from_scratch(llama, TOKENS, 6, DEPTH, SAMPLED)
    assert blocks[1].tokens == tuple(token for token, _ in expected)


def test_an_unknown_sequence_needs_context_and_is_drafted_for_when_it_comes(
    connect: Connect, worker: DraftWorker
) -> None:
    with connect(worker, "target", PATIENCE_S) as client:
        (refused,) = draft(client, row(1, TOKENS, 2, start=5))
        (drafted,) = draft(client, row(1, TOKENS, 2), round_id=2)
    assert (refused.status, refused.base_length, refused.tokens) == (DraftStatus.NEED_CONTEXT, 8, ())
    assert (drafted.status, len(drafted.tokens)) == (DraftStatus.OK, 2)


def test_a_row_whose_context_is_yet_to_be_read_holds_up_no_other_and_is_drafted_for_in_a_later_round(
    connect: Connect, worker: DraftWorker, llama: Decoder
) -> None:
    long, rounds = [*TOKENS * 8], itertools.count(1)
    with connect(worker, "target", PATIENCE_S) as client:

        def ask(start: int) -> list[DraftBlock]:
            rows = row(1, long, 2, start), row(2, TOKENS, 2, min(start, len(TOKENS)))
            reply = client.draft(replace(request(*rows, round_id=next(rounds)), deadline_ms=1e3 * PATIENCE_S))
            assert reply is not None
            return list(reply.blocks)

        slow, fast = ask(0)
        assert (slow.status, slow.tokens, len(fast.tokens)) == (DraftStatus.NOT_YET, (), 2)
        eventually(lambda: ask(len(long))[0].status is DraftStatus.OK)
        (again, _) = ask(len(long))
    expected = draft_from_scratch(llama, long, 2, DEPTH, SAMPLED)
    assert again.tokens == tuple(token for token, _ in expected)


def test_a_full_pool_says_so_row_by_row(connect: Connect, worker: DraftWorker) -> None:
    with connect(worker, "target", PATIENCE_S) as client:
        blocks = draft(client, *(row(sequence_id, TOKENS, 1) for sequence_id in range(6)))
    assert [block.status for block in blocks] == [DraftStatus.OK] * 4 + [DraftStatus.BUSY] * 2


def test_closing_forgets_sequences_and_does_not_mind_unknown_ones(connect: Connect, worker: DraftWorker) -> None:
    with connect(worker, "target", PATIENCE_S) as client:
        draft(client, row(1, TOKENS, 1), row(2, TOKENS, 1))
        client.close([1, 99])
        eventually(lambda: worker.stats().num_sequences == 1)
        (refused,) = draft(client, row(1, TOKENS, 1, start=6), round_id=2)
        client.close([2])
        eventually(lambda: worker.stats().num_free_pages == worker.stats().num_pages)
    assert refused.status is DraftStatus.NEED_CONTEXT


def test_past_its_deadline_a_draft_is_given_up_without_an_error(connect: Connect, worker: DraftWorker) -> None:
    with connect(worker, "target", 0.0) as client:
        assert client.draft(request(row(1, TOKENS, 30))) is None
        client.close([1])


def test_an_answer_names_who_asked_and_comes_in_the_order_of_its_rows(
    connect: Connect, worker: DraftWorker, llama: Decoder
) -> None:
    with connect(worker, "target", PATIENCE_S) as client:
        reply = client.draft(request(row(1, TOKENS, 4), row(2, TOKENS[:3], 1), round_id=7))
    assert reply is not None
    assert (reply.incarnation, reply.round_id) == ("target", 7)
    expected = [draft_from_scratch(llama, tokens, n, DEPTH, SAMPLED) for tokens, n in ((TOKENS, 4), (TOKENS[:3], 1))]
    assert [block.tokens for block in reply.blocks] == [tuple(token for token, _ in own) for own in expected]


@dataclass
class Late:
    """After one pass the deadline is over: by the clock, and before another pass is done.

    A client that waits for a socket looks at it once the second pass has begun, however long the first took.
    """

    run: Callable[[Sequence[PassRow]], list[Pick | None]]
    clock: Clock
    num_passes: int = 0
    has_begun: threading.Event = field(default_factory=threading.Event)
    is_over: threading.Event = field(default_factory=threading.Event)

    def __call__(self, rows: Sequence[PassRow]) -> list[Pick | None]:
        self.num_passes += 1
        if self.num_passes > 1:
            self.clock.now += 1.0
            self.has_begun.set()
            if threading.current_thread() is not threading.main_thread():
                self.is_over.wait(PATIENCE_S)
        return self.run(rows)

    def wait(self, connection: Connection, timeout_s: float) -> bool:
        assert timeout_s <= 0 or self.has_begun.wait(PATIENCE_S)
        return WAIT(connection, timeout_s)


WAIT = Connection.wait


def test_at_the_deadline_the_rows_that_are_done_come_without_those_that_are_not(
    connect: Connect, worker: DraftWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    late = Late(worker._drafter.run, clock)
    monkeypatch.setattr(worker._drafter, "run", late)
    with (
        connect(worker, "target", 0.05, clock) as client,
        patch.object(Connection, "wait", lambda *args: late.wait(*args)),
    ):
        asked = request(row(1, TOKENS, 40), row(2, TOKENS[:3], 1), row(3, TOKENS, 1, start=4))
        reply = client.draft(replace(asked, deadline_ms=1e3 * PATIENCE_S))  # the pool's own deadline is far
        late.is_over.set()
        client.close([1])
    assert reply is not None
    assert [(block.sequence_id, block.status) for block in reply.blocks] == [
        (2, DraftStatus.OK),
        (3, DraftStatus.NEED_CONTEXT),
    ]


def test_two_clients_with_the_same_sequence_ids_do_not_meet(
    connect: Connect, worker: DraftWorker, llama: Decoder
) -> None:
    with connect(worker, "target", PATIENCE_S) as client, connect(worker, "other", PATIENCE_S) as other:
        draft(client, row(1, TOKENS, 2))
        reply = other.draft(DraftRequest("other", 1, DEPTH, (row(1, TOKENS[::-1], 2),)))
        (again,) = draft(client, row(1, TOKENS, 2, start=len(TOKENS)), round_id=2)
        other.close([1])
        eventually(lambda: worker.stats().num_sequences == 1)
    assert reply is not None
    expected = [draft_from_scratch(llama, tokens, 2, DEPTH, SAMPLED) for tokens in (TOKENS[::-1], TOKENS)]
    assert reply.blocks[0].tokens == tuple(token for token, _ in expected[0])
    assert again.tokens == tuple(token for token, _ in expected[1])
