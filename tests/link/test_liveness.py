"""Who waits for a replica that says nothing any more, and who goes on, with hours that pass at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from link.liveness import Census, Liveness, take_census
from protocol.errors import NotReady

SILENCE_S, WAIT_S = 20.0, 120.0
GONE, BUSY, HERE = Census(is_complete=False), Census(), Census(frozenset({"r"}), is_complete=False)


class Replicas:
    """What a target's replicas tell, one census after the other, and the time that passed before each."""

    def __init__(self, *told: Census | Exception) -> None:
        self.told, self.waited, self.num_taken = list(told), 0.0, 0
        self.asked = asyncio.Event()

    async def take(self, timeout_s: float) -> Census:
        assert timeout_s == SILENCE_S / 2
        self.num_taken += 1
        told = self.told.pop(0)
        if not self.told:
            self.asked.set()
        if isinstance(told, Exception):
            raise told
        return told

    async def sleep(self, seconds: float) -> None:
        """Time stands still when there is nothing more to be told."""
        self.waited += seconds
        await (asyncio.sleep(0) if self.told else asyncio.Event().wait())

    def liveness(self) -> Liveness:
        return Liveness(self.take, SILENCE_S, WAIT_S, self.sleep)


async def held(liveness: Liveness, answer: Callable[[], asyncio.Future[str]], name: str = "r") -> str:
    async with liveness.watch(name):
        return await answer()


async def test_a_request_whose_replica_is_frozen_is_given_up_after_one_question() -> None:
    replicas = Replicas(GONE)
    with pytest.raises(NotReady, match="does not answer"):
        await held(replicas.liveness(), asyncio.get_running_loop().create_future)
    assert (replicas.num_taken, replicas.waited) == (1, SILENCE_S / 2)


@pytest.mark.parametrize("told", [BUSY, HERE, RuntimeError("the cluster is busy")])
async def test_a_request_is_waited_for_while_its_replica_tells_of_it_or_all_answer(told: Census | Exception) -> None:
    """Where all answer the request may still be on its way; where nothing is known the call itself learns that."""
    replicas = Replicas(told, told, told)
    answer = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(held(replicas.liveness(), lambda: answer))
    await replicas.asked.wait()
    answer.set_result("text")
    assert await waiting == "text"


async def test_a_request_is_given_up_when_its_replica_freezes_later() -> None:
    replicas = Replicas(HERE, HERE, Census(frozenset({"other"}), is_complete=False))
    with pytest.raises(NotReady):
        await held(replicas.liveness(), asyncio.get_running_loop().create_future)
    assert replicas.waited == 3 * SILENCE_S / 2


async def test_a_request_that_no_replica_takes_is_given_up_in_the_end() -> None:
    replicas = Replicas(*[BUSY] * 20)
    with pytest.raises(NotReady, match="no replica has taken the request within 120 s"):
        await held(replicas.liveness(), asyncio.get_running_loop().create_future)
    assert replicas.waited == WAIT_S


async def test_a_replica_that_has_the_request_now_and_then_is_waited_for() -> None:
    replicas = Replicas(*([BUSY] * 11 + [HERE] + [RuntimeError("the cluster is busy")] * 3) * 4, GONE)
    with pytest.raises(NotReady, match="does not answer"):
        await held(replicas.liveness(), asyncio.get_running_loop().create_future)


async def test_what_the_call_raises_itself_comes_through() -> None:
    async def late() -> str:
        raise TimeoutError("of the call")

    with pytest.raises(TimeoutError, match="of the call"):
        async with Replicas().liveness().watch("r"):
            await late()


async def test_requests_of_a_target_share_the_question() -> None:
    replicas = Replicas(GONE, GONE)
    liveness, loop = replicas.liveness(), asyncio.get_running_loop()
    waiting = [held(liveness, loop.create_future, name) for name in "abc"]
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(each) for each in ended] == [NotReady] * 3
    assert replicas.num_taken == 1


async def test_nobody_is_asked_when_the_request_has_ended() -> None:
    replicas = Replicas(GONE)
    answer = asyncio.get_running_loop().create_future()
    answer.set_result("text")
    assert await held(replicas.liveness(), lambda: answer) == "text"
    for _ in range(5):
        await asyncio.sleep(0)
    assert replicas.num_taken == 0


async def test_a_census_has_what_came_in_time_and_counts_a_failure_as_an_answer() -> None:
    loop = asyncio.get_running_loop()
    told, failed, frozen = loop.create_future(), loop.create_future(), loop.create_future()
    told.set_result(("a", "b"))
    failed.set_exception(RuntimeError("of an older version"))
    assert await take_census([told, failed], 5.0) == Census(frozenset("ab"), is_complete=True)
    assert await take_census([told, frozen], 0.0) == Census(frozenset("ab"), is_complete=False)
    assert frozen.cancelled()
    assert await take_census([], 0.0) == Census()
