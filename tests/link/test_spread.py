"""A target whose sequences are on several draft replicas: its requests are split, and its answers put together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest

from link.backoff import MISSES, PAUSES_S
from link.links import GONE_AFTER
from link.placement import MOVES_AFTER
from link.pool_thread import Reply
from link.transport import LinkedDraftClient
from protocol.branch import AheadRequest, AheadRow, Branch, BranchReply
from protocol.draft import DraftBlock, DraftStatus
from tests.deployments.harness import (
    DEPTH,
    TARGET,
    Clock,
    Directory,
    LoopThread,
    ScriptedPool,
    client,
    request,
    wait_until,
)

OK = DraftStatus.OK
IDS = range(1, 9)


def read(drafts: LinkedDraftClient) -> set[int]:
    """The sequences that what was asked last is answered for so far."""
    for route in drafts._links.routes.values():
        route.link.read()
    return {name for route in drafts._links.routes.values() if route.share for name in route.share.blocks}


@contextmanager
def spread(
    runner: LoopThread, count: int = 3, **settings: object
) -> Iterator[tuple[list[ScriptedPool], LinkedDraftClient]]:
    """So many replicas, and a target that is linked with all of them."""
    with ExitStack() as stack:
        pools = [ScriptedPool(f"pool-{number}") for number in range(count)]
        for pool in pools:
            stack.callback(pool.kill)
        drafts = stack.enter_context(client(runner, Directory(*pools), **settings))  # type: ignore[arg-type]
        wait_until(lambda: len(drafts.members) == count)
        yield pools, drafts


def blocks(drafts: LinkedDraftClient, round_id: int, *rows: tuple[int, int, int]) -> Sequence[DraftBlock]:
    reply = drafts.draft(request(round_id, *rows))
    return reply.blocks if reply else ()


def homes(pools: Sequence[ScriptedPool]) -> dict[int, str]:
    return {key[1]: pool.name for pool in pools for key in pool.worker.known}


def test_a_request_is_split_over_the_replicas_and_answered_as_one_in_the_order_of_its_rows(runner: LoopThread) -> None:
    with spread(runner) as (pools, drafts):
        rows = [(name, 0, 3 + name) for name in IDS]
        found = blocks(drafts, 1, *rows)
        assert [(block.sequence_id, block.tokens[0]) for block in found] == [(name, 3 + name) for name in IDS]
        assert sorted(len(pool.worker.known) for pool in pools)[0] > 0
        assert len(homes(pools)) == len(IDS)


def test_a_sequence_stays_where_it_is_and_only_what_is_new_is_sent(runner: LoopThread) -> None:
    with spread(runner) as (pools, drafts):
        blocks(drafts, 1, *((name, 0, 4) for name in IDS))
        before = homes(pools)
        for round_id in range(2, 6):
            found = blocks(drafts, round_id, *((name, 2 + round_id, 3 + round_id) for name in IDS))
            assert {block.status for block in found} == {DraftStatus.OK}
        assert homes(pools) == before


def test_when_a_replica_dies_its_sequences_go_to_the_others_which_ask_for_their_context(runner: LoopThread) -> None:
    with spread(runner) as (pools, drafts):
        blocks(drafts, 1, *((name, 0, 4) for name in IDS))
        before = homes(pools)
        pools[0].kill()
        wait_until(lambda: len(drafts.members) == 2)
        found = {block.sequence_id: block.status for block in blocks(drafts, 2, *((name, 4, 5) for name in IDS))}
        lost = {name for name, pool in before.items() if pool == "pool-0"}
        assert {name for name, status in found.items() if status is DraftStatus.NEED_CONTEXT} == lost
        assert {block.status for block in blocks(drafts, 3, *((name, 0, 5) for name in lost))} == {DraftStatus.OK}


def test_a_replica_that_is_killed_in_mid_draft_costs_its_own_rows_only(runner: LoopThread) -> None:
    with spread(runner, deadline_s=1e5) as (pools, drafts):
        blocks(drafts, 1, *((name, 0, 4) for name in IDS))
        kept = {name for name, pool in homes(pools).items() if pool != "pool-0"}
        pools[0].worker.holds = True
        asked = request(2, *((name, 4, 5) for name in IDS))
        shares = drafts._ask(asked)
        wait_until(lambda: len(pools[0].worker.seen) == 2)
        pools[0].kill()
        reply = drafts._answer(asked, shares)
        assert reply is not None
        assert {block.sequence_id for block in reply.blocks} == kept


def test_a_replica_that_is_late_is_waited_for_until_the_deadline_and_left_alone_after_a_few(runner: LoopThread) -> None:
    with spread(runner, deadline_s=0.05, clock=Clock()) as (pools, drafts):
        blocks(drafts, 1, *((name, 0, 4) for name in IDS))
        kept = {name for name, pool in homes(pools).items() if pool != "pool-0"}
        pools[0].worker.holds = True
        for round_id in range(2, 2 + MISSES):
            asked = request(round_id, *((name, 4, 5) for name in IDS))
            shares = drafts._ask(asked)
            wait_until(lambda: read(drafts) >= kept)
            reply = drafts._answer(asked, shares)
            assert reply is not None
            assert {block.sequence_id for block in reply.blocks} == kept
        num_asked = len(pools[0].worker.seen)
        drafts._config = type(drafts._config)(deadline_s=1e5)  # who waits for it does not come back
        found = blocks(drafts, 9, *((name, 4, 5) for name in IDS))
        assert {block.sequence_id for block in found} == kept
        assert len(pools[0].worker.seen) == num_asked


def test_a_replica_that_stays_late_is_probed_in_growing_pauses_and_keeps_its_sequences(runner: LoopThread) -> None:
    clock = Clock()
    with spread(runner, count=2, deadline_s=0.05, clock=clock) as (pools, drafts):
        blocks(drafts, 1, *((name, 0, 4) for name in IDS))
        before, links = homes(pools), [route.link for route in drafts._links.routes.values()]
        kept = {name for name, pool in before.items() if pool != "pool-0"}
        pools[0].worker.holds = True

        def is_asked(round_id: int, answered: set[int]) -> bool:
            """Whether the slow one is asked in this round, which ends when these are answered."""
            asked = request(round_id, *((name, 4, 5) for name in IDS))
            shares = drafts._ask(asked)
            wait_until(lambda: read(drafts) >= answered)
            drafts._answer(asked, shares) if shares else None
            share = drafts._links.routes["pool-0"].share
            return share is not None and share.asked.round_id == round_id

        assert all(is_asked(round_id, kept) for round_id in range(2, 2 + MISSES))
        left_alone, probes = clock.now, list[float]()
        for half_second in range(1, 250):
            clock.now = left_alone + half_second / 2
            probes += [half_second / 2] * is_asked(100 + half_second, kept)
        assert probes == [1, 3, 7, 15, 31, 61, 91, 121], "after pauses of 1, 2, 4, 8, 16 and 30 s"
        pools[0].release()
        clock.now += PAUSES_S[-1]
        assert is_asked(400, set(IDS))
        assert [block.status for block in blocks(drafts, 401, *((name, 5, 6) for name in IDS))] == [OK] * len(IDS)
        assert homes(pools) == before
        assert [route.link for route in drafts._links.routes.values()] == links


def test_a_sequence_moves_when_its_replica_stays_full(runner: LoopThread) -> None:
    with spread(runner, count=2) as (pools, drafts):
        blocks(drafts, 1, (1, 0, 4))
        first = next(pool for pool in pools if pool.worker.known)
        other = next(pool for pool in pools if pool is not first)
        first.worker.status = DraftStatus.BUSY
        for round_id in range(2, 2 + MOVES_AFTER):
            assert [block.status for block in blocks(drafts, round_id, (1, 0, 4))] == [DraftStatus.BUSY]
        assert [block.status for block in blocks(drafts, 9, (1, 0, 4))] == [DraftStatus.OK]
        assert (TARGET + "#1", 1) in other.worker.known


@contextmanager
def listed(runner: LoopThread) -> Iterator[tuple[list[ScriptedPool], Directory, LinkedDraftClient]]:
    """Two replicas, the directory that lists them, and a client whose sequences are spread over both."""
    with ExitStack() as stack:
        pools = [ScriptedPool("pool-0"), ScriptedPool("pool-1")]
        for pool in pools:
            stack.callback(pool.kill)
        directory = Directory(*pools)
        drafts = stack.enter_context(client(runner, directory))
        wait_until(lambda: len(drafts.members) == 2)
        blocks(drafts, 1, *((name, 0, 4) for name in IDS))
        yield pools, directory, drafts


def test_a_replica_that_is_listed_no_more_drains_and_its_sequences_move(runner: LoopThread) -> None:
    with listed(runner) as (pools, directory, drafts):
        asked = directory.asked
        directory.pools.remove(pools[0])
        wait_until(lambda: [member.incarnation for member in drafts.members] == ["pool-1"])
        assert directory.asked >= asked + GONE_AFTER
        assert {block.status for block in blocks(drafts, 2, *((name, 0, 4) for name in IDS))} == {DraftStatus.OK}
        assert set(homes(pools[1:])) == set(IDS)
        wait_until(lambda: not pools[0].server._targets)


def test_a_replica_that_answers_discovery_late_keeps_its_link_and_its_sequences(runner: LoopThread) -> None:
    with listed(runner) as (pools, directory, drafts):
        before, links = homes(pools), [route.link for route in drafts._links.routes.values()]
        directory.late, asked = (pools[0],), directory.asked
        wait_until(lambda: directory.asked > asked + 2 * GONE_AFTER)
        assert {block.status for block in blocks(drafts, 2, *((name, 4, 5) for name in IDS))} == {DraftStatus.OK}
        assert homes(pools) == before
        assert [route.link for route in drafts._links.routes.values()] == links
        directory.late, directory.pools = (), pools[1:]
        wait_until(lambda: [member.incarnation for member in drafts.members] == ["pool-1"])


def test_a_discovery_that_finds_nobody_drains_nobody(runner: LoopThread) -> None:
    pool = ScriptedPool()
    directory = Directory(pool)
    with client(runner, directory) as drafts:
        wait_until(lambda: drafts.members)
        directory.pools.clear()
        asked = directory.asked
        wait_until(lambda: directory.asked > asked + 2 * GONE_AFTER)
        assert drafts.replica == "pool-0"
    pool.kill()


def test_closes_and_what_is_verified_go_where_the_sequence_is(runner: LoopThread) -> None:
    with spread(runner) as (pools, drafts):
        blocks(drafts, 1, *((name, 0, 4) for name in IDS))
        before = homes(pools)
        context = request(1, *((name, 4, 4) for name in IDS), length=0).rows
        drafts.ahead(AheadRequest(TARGET, 1, DEPTH, tuple(AheadRow(row, (4, 5), 3) for row in context)))
        drafts.close(list(IDS))
        wait_until(lambda: sum(len(pool.worker.closed) for pool in pools) == len(IDS))
        for pool in pools:
            own = [name for name in IDS if before[name] == pool.name]
            assert pool.worker.closed == own
            assert [row.context.sequence_id for row in pool.worker.ahead_seen[0].rows] == own


@pytest.mark.parametrize("is_home", [True, False])
def test_branches_are_taken_from_the_replica_that_the_sequence_is_on_alone(runner: LoopThread, is_home: bool) -> None:
    with spread(runner, count=2) as (pools, drafts):
        blocks(drafts, 1, (1, 0, 4))
        home = next(pool for pool in pools if pool.worker.known)
        other = next(pool for pool in pools if pool is not home)
        wait_until(lambda: all(pool.server._targets for pool in pools))
        branch = Branch(1, 5, 7, (1, 2), (0.5, 0.5), round_id=1)
        send: Reply = next(iter((home if is_home else other).server._targets)).reply
        send(BranchReply(TARGET, 1, (branch,)))
        assert list(drafts.branches(0.2)) == ([branch] if is_home else [])
