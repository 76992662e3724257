"""Drafting ahead over a real stream: what is late, foreign or dead costs no more than the deadline, and no token."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from drafters.nested import NestedDrafter
from drafters.worker import DraftWorker
from link.backoff import MISSES
from link.discovery import Found, Need
from link.link import Link
from link.links import TransportConfig
from link.pool_thread import Reply
from link.transport import MAX_BRANCHES, LinkedDraftClient
from model.decoder import Decoder
from model.load import load_decoder
from protocol.branch import AheadRequest, AheadRow, Branch, BranchReply
from protocol.draft import DraftReply, DraftRequest
from protocol.plan import Mode
from protocol.request import GenerateRequest, SamplingParams, StopRules
from protocol.stats import PassStats
from router.policy import Fixed
from targets.engine import Engine, EngineConfig
from targets.model import TargetModel, load_target
from tests.deployments.harness import (
    DEPTH,
    HASH,
    TARGET,
    Directory,
    LoopThread,
    ScriptedPool,
    client,
    request,
    wait_until,
)
from tests.link.contract import Replica
from tests.link.rig import drafting_on
from tests.reference.engine import plain_texts, run_all

DEADLINE_S = 0.3


@pytest.fixture(scope="module")
def target(family: Path) -> TargetModel:
    return load_target_of(family / "small")


def load_target_of(path: Path) -> TargetModel:
    return load_target(path, dtype=torch.float32, num_positions=2048, page_size=16)


@pytest.fixture
def drafter(family: Path) -> Decoder:
    """Of one replica: a decoder is for one thread."""
    return load_decoder(family / "drafter", dtype=torch.float32)


@pytest.fixture
def another(family: Path) -> Decoder:
    return load_decoder(family / "drafter", dtype=torch.float32)


class Watched(DraftWorker):
    """Tells of every draft, in turn and ahead, and takes its time for a pass."""

    def __init__(
        self,
        drafter: Decoder,
        pause_s: float = 0.0,
        on_ahead: Callable[[], None] = lambda: None,
        on_draft: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(NestedDrafter(drafter, (2, 4), num_pages=64, page_size=16))
        self.pause_s, self.on_ahead, self.on_draft = pause_s, on_ahead, on_draft
        self.num_aheads = 0
        self.num_done = 0  # requests to draft ahead, their branches included

    def submit(self, request: DraftRequest, reply: Callable[[DraftReply], None]) -> None:
        super().submit(request, reply)
        if any(row.length for row in request.rows):
            self.on_draft()

    def ahead(self, request: AheadRequest, reply: Reply) -> None:
        super().ahead(request, reply)
        self.num_aheads += 1
        self.on_ahead()

    def step(self) -> PassStats | None:
        stats = super().step()
        if stats is None:
            self.num_done = self.num_aheads
        time.sleep(self.pause_s if stats else 0.0)
        return stats


class Pools:
    """Discovery over real replicas, of which the first dies when it is told to."""

    def __init__(self, *workers: DraftWorker) -> None:
        self.replicas = [Replica(worker) for worker in workers]
        self.runner = self.replicas[0].runner

    async def __call__(self) -> Found:
        return Found([replace(one.member, incarnation=f"pool-{number}") for number, one in enumerate(self.replicas)])

    @contextmanager
    def client(self) -> Iterator[LinkedDraftClient]:
        async def start() -> LinkedDraftClient:
            made = LinkedDraftClient(TARGET, self, Need(HASH, (2, 4)), TransportConfig(DEADLINE_S, 0.05, 0.02))
            await made.start()
            return made

        made = self.runner.run(start())
        try:
            wait_until(lambda: made.replica)
            yield made
        finally:
            self.runner.run(made.stop())
            for replica in self.replicas:
                replica.close()


def requests(count: int, max_tokens: int = 40) -> list[GenerateRequest]:
    return [
        GenerateRequest(str(i), (5, 6, 7, i), SamplingParams(temperature=0.8 * (i % 2), seed=i), StopRules(max_tokens))
        for i in range(count)
    ]


def engine_ahead(target: TargetModel, drafts: LinkedDraftClient, mode: Mode = Mode.AHEAD) -> Engine:
    policy = Fixed(4, 4, mode)
    return Engine(target, policy, drafts, EngineConfig(incarnation=TARGET), ahead=True)


def test_a_pool_killed_in_mid_branch_changes_no_text_and_the_next_one_drafts_ahead(
    target: TargetModel, drafter: Decoder, another: Decoder
) -> None:
    dying = threading.Event()
    second = Watched(another)
    pools = Pools(Watched(drafter, pause_s=0.005, on_ahead=dying.set), second)
    texts = plain_texts(target, requests(4))

    def kill() -> None:
        dying.wait(30)
        pools.replicas[0].server.stop()

    killer = threading.Thread(target=kill)
    killer.start()
    with pools.client() as drafts:
        wait_until(lambda: len(drafts._links.routes) == 2)
        engine = engine_ahead(target, drafts)
        assert run_all(engine, requests(4)).tokens == texts
        killer.join()
        wait_until(lambda: drafts.replica == "pool-1")
        again = engine_ahead(target, drafts)
        assert run_all(again, requests(4)).tokens == texts
    assert dying.is_set()
    assert second.num_aheads > 0
    assert target.ledger.num_free == target.ledger.num_pages


class Stuck(Watched):
    """Never comes to the end of a pass."""

    def step(self) -> PassStats | None:
        return None


@pytest.mark.parametrize("mode", list(Mode))
def test_a_round_waits_no_longer_than_the_deadline_however_slow_the_pool(
    target: TargetModel, drafter: Decoder, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = plain_texts(target, requests(2))
    with Pools(Stuck(drafter)).client() as drafts:
        waits = waits_of(monkeypatch)
        engine = engine_ahead(target, drafts, mode)
        assert run_all(engine, requests(2)).tokens == texts
        (route,) = drafts._links.routes.values()
        assert route.backoff._misses == MISSES
    assert 0.9 * DEADLINE_S < max(waits) <= DEADLINE_S


def waits_of(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """For how many seconds at most links are read from now on, by whoever waits for what comes."""
    read, waits = Link.read, []

    def noted(link: Link, timeout_s: float = 0.0) -> None:
        waits.append(timeout_s)
        read(link, timeout_s)

    monkeypatch.setattr(Link, "read", noted)
    return waits


def test_windows_that_come_while_the_target_verifies_are_at_hand_when_it_has(
    family: Path, drafter: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The drafter has the target's weights, and a pass takes long enough for a branch."""
    target, worker, num_sent = load_target_of(family / "large"), Watched(drafter), itertools.count(1)
    with Pools(worker).client() as drafts:
        ahead = drafts.ahead

        def unhurried(asked: AheadRequest) -> None:
            ahead(asked)
            sent = next(num_sent)
            wait_until(lambda: worker.num_done >= sent)
            time.sleep(0.01)  # for the stream

        monkeypatch.setattr(drafts, "ahead", unhurried)
        engine = engine_ahead(target, drafts, Mode.AHEAD)
        assert run_all(engine, requests(2)).tokens == plain_texts(target, requests(2))
        stats = engine.stats()
    assert stats.num_hits > stats.num_misses


def ahead(round_id: int = 1) -> AheadRequest:
    return AheadRequest(TARGET, round_id, DEPTH, (AheadRow(request(1, (1, 0, 4), length=0).rows[0], (4, 5), 3),))


def branch(number: int = 0, round_id: int = 1) -> Branch:
    return Branch(1, 5, number, (1, 2, 3), (0.5,) * 3, round_id=round_id)


def test_branches_come_over_the_link(runner: LoopThread) -> None:
    pool = ScriptedPool()

    def answer(asked: AheadRequest, reply: Reply) -> None:
        reply(BranchReply(asked.incarnation, asked.round_id, (branch(1), branch(2))))

    pool.worker.ahead = answer  # type: ignore[method-assign]
    with drafting_on(runner, pool) as drafts:
        drafts.ahead(ahead())
        assert list(drafts.branches(timeout_s=10.0)) == [branch(1), branch(2)]
        assert list(drafts.branches()) == []


def test_without_a_replica_or_with_one_that_is_too_slow_nothing_is_sent_ahead(runner: LoopThread) -> None:
    with client(runner, Directory()) as drafts:
        drafts.ahead(ahead())
        assert list(drafts.branches()) == []
    pool = ScriptedPool(holds=True)
    with client(runner, Directory(pool), deadline_s=0.05) as drafts:
        wait_until(lambda: drafts.replica)
        drafts.ahead(ahead())
        wait_until(lambda: len(pool.worker.ahead_seen) == 1)
        for round_id in range(MISSES):
            assert drafts.draft(request(round_id, (1, 0, 4))) is None
        drafts.ahead(ahead(round_id=2))
        drafts.close([1])
        wait_until(lambda: pool.worker.closed == [1])
        assert len(pool.worker.ahead_seen) == 1
    pool.kill()


def test_the_newest_branches_are_kept_and_the_first_is_waited_for(
    runner: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, waits = ScriptedPool(), waits_of(monkeypatch)

    def answer(asked: AheadRequest, reply: Reply) -> None:
        keys = range(MAX_BRANCHES + 5) if asked.round_id == 1 else [7]
        wait_until(lambda: any(waits))  # the answer comes while it is waited for
        reply(BranchReply(asked.incarnation, asked.round_id, tuple(branch(number) for number in keys)))

    pool.worker.ahead = answer  # type: ignore[method-assign]
    with drafting_on(runner, pool) as drafts:
        assert list(drafts.branches(0.05)) == []
        assert 0.04 < max(waits) <= 0.05
        waits.clear()
        drafts.ahead(ahead(1))
        assert [one.key for one in drafts.branches(10.0)] == list(range(5, MAX_BRANCHES + 5))
        waits.clear()
        drafts.ahead(ahead(2))
        assert list(drafts.branches(10.0)) == [branch(7, round_id=2)]
