"""What an ingress tells of replicas, played by handles: of all that answer, asked once for all who ask."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from api.trace import Track
from deployments import handles
from link.counts import replica_name
from link.discovery import Found, PoolMember
from protocol.stats import PoolStats
from tests.deployments.handle_twins import Handle, serving


async def test_statistics_are_of_every_replica_that_answers(tokenizer_path: str) -> None:
    up, down, pool = Handle(), Handle(told=ActorDiedError()), Handle()
    up.stats = [{"num_running": 1}, ActorDiedError(), {"num_running": 0}]
    counts = PoolStats(3, 4, 8, 9, 1, 30, 2, 0.5)
    pool.stats = [PoolMember("127.0.0.1:1", "pool-0", (2,), "hash", 64, counts)]
    async with serving(tokenizer_path, pool, a=up, b=down) as backend:
        told = await backend.stats()
    assert told["targets"] == {"a": [{"num_running": 1}, {"num_running": 0}], "b": []}
    assert told["pool"] == [asdict(counts) | {"steps_run": None, "replica": replica_name("pool-0")}]
    assert "pool-0" not in str(told), "an incarnation is not told"
    async with serving(tokenizer_path, a=up) as backend:
        assert (await backend.stats())["pool"] == []


async def test_router_beliefs_come_from_every_replica_that_answers(tokenizer_path: str) -> None:
    up, down = Handle(), Handle(told=ActorDiedError())
    up.router = [{"policy": "off"}, ActorDiedError()]
    async with serving(tokenizer_path, a=up, b=down) as backend:
        assert await backend.router() == {"a": [{"policy": "off"}], "b": []}


async def test_a_frozen_replica_hides_none_of_the_others(tokenizer_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handles, "STATS_TIMEOUT_S", 0.2)
    some = Handle()
    some.stats = [{"num_running": 1}, asyncio.Event(), {"num_running": 0}]
    async with serving(tokenizer_path, a=some) as backend:
        assert (await backend.stats())["targets"] == {"a": [{"num_running": 1}, {"num_running": 0}]}


@pytest.mark.parametrize(
    ("answers", "is_complete"),
    [(["pool-0", "pool-1"], True), (["pool-0", ActorDiedError()], True), (["pool-0", asyncio.Event()], False)],
    ids=["all", "a dead one", "a late one"],
)
async def test_a_target_learns_whether_a_draft_replica_is_late_which_one_that_died_is_not(
    answers: list[Any], is_complete: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handles, "STATS_TIMEOUT_S", 0.2)
    pool: Any = Handle()
    pool.stats = answers
    assert await handles.discover(pool) == Found([name for name in answers if isinstance(name, str)], is_complete)


async def test_a_pool_without_replicas_is_not_all_that_there_is() -> None:
    gone: Any = Handle(told=ActorDiedError())
    assert await handles.discover(gone) == Found([], is_complete=False)


async def test_many_who_ask_at_once_ask_the_replicas_once(tokenizer_path: str) -> None:
    up, pool, hold = Handle(), Handle(), asyncio.Event()
    up.stats = up.router = [hold]
    async with serving(tokenizer_path, pool, a=up) as backend:
        asked = [asyncio.ensure_future(ask()) for ask in (backend.stats, backend.router) for _ in range(30)]
        await asyncio.sleep(0)
        hold.set()
        told = await asyncio.gather(*asked)
    assert up.broadcasts == {"stats": 1, "router": 1}
    assert pool.broadcasts == {"describe": 1}
    assert all(one is told[0] for one in told[:30])


async def test_a_trace_does_not_reveal_incarnations(tokenizer_path: str) -> None:
    up, pool = Handle(), Handle()
    up.trace = [Track("a-incarnation1", ()), Track("a-incarnation2", ())]
    pool.trace = [Track("pool-incarnation", ())]
    async with serving(tokenizer_path, pool, a=up) as backend:
        targets, drafters = await backend.trace(3)
    assert [track.name for track in (*targets, *drafters)] == ["a 0", "a 1", "pool 0"]
