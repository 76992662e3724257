"""Many who ask for what takes long to collect: one collection at a time, none of it too old, and nobody is in vain.

The clock stands still unless a test moves it, and a collection ends when the test says so.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import pytest

from api.single_flight import Bounds, Lasting, SingleFlight
from protocol.errors import NotReady, QueueFull
from tests.api.test_heartbeat import settle
from tests.deployments.harness import Clock

caller: ContextVar[str] = ContextVar("caller", default="nobody")


class Slow:
    """Collections that end when told to; each finds its own number."""

    def __init__(self, **bounds: Any) -> None:
        self.clock = Clock()
        self.began: list[asyncio.Future[int]] = []
        self.most, self.callers = 0, list[str]()
        self.ask = SingleFlight(self._collect, Bounds(**bounds), self.clock)
        self._num_running = 0

    async def asked(self, count: int = 1) -> list[asyncio.Task[int]]:
        """So many who wait."""
        made = [asyncio.ensure_future(self.ask()) for _ in range(count)]
        await settle()
        return made

    async def end(self, error: Exception | None = None) -> None:
        """The collection under way."""
        number = len(self.began) - 1
        if error is None:
            self.began[number].set_result(number)
        else:
            self.began[number].set_exception(error)
        await settle()

    async def _collect(self) -> int:
        self.began.append(asyncio.get_running_loop().create_future())
        self.callers.append(caller.get())
        self._num_running += 1
        self.most = max(self.most, self._num_running)
        try:
            return await self.began[-1]
        finally:
            self._num_running -= 1


def found(asked: Sequence[asyncio.Task[int]]) -> list[int | None]:
    """What those who asked have; None: they still wait."""
    return [task.result() if task.done() else None for task in asked]


async def test_all_who_ask_meanwhile_get_what_one_collection_finds() -> None:
    slow = Slow()
    asked = await slow.asked(20)
    slow.clock.now = 0.9
    asked += await slow.asked(20)
    assert len(slow.began) == 1
    await slow.end()
    assert found(asked) == [0] * 40


async def test_who_asks_later_gets_a_collection_of_their_own() -> None:
    slow = Slow()
    first = await slow.asked()
    await slow.end()
    second = await slow.asked()
    assert len(slow.began) == 2, "nothing is kept, not even where no time has passed"
    await slow.end()
    assert found(first + second) == [0, 1]


async def test_who_asks_long_after_it_began_waits_for_the_next_one_together_with_all_such() -> None:
    slow = Slow(age_s=1.0)
    early = await slow.asked(3)
    slow.clock.now = 1.1
    late = await slow.asked(5)
    assert (len(slow.began), found(late)) == (1, [None] * 5)
    await slow.end()
    assert (found(early), found(late), len(slow.began)) == ([0] * 3, [None] * 5, 2)
    await slow.end()
    assert (found(late), len(slow.began)) == ([1] * 5, 2)


async def test_two_never_run_at_once_however_many_ask_and_however_long_they_take() -> None:
    """Three a second for a minute, where each takes four seconds."""
    slow = Slow()
    asked, most_waiting = list[asyncio.Task[int]](), 0
    for third in range(180):
        slow.clock.now = third / 3
        asked += await slow.asked()
        most_waiting = max(most_waiting, sum(not task.done() for task in asked))
        if third % 12 == 11:
            await slow.end()
    await slow.end()
    assert slow.most == 1
    assert None not in found(asked)
    assert most_waiting <= 2 * 12, "those of one collection and of the next"
    assert len(slow.began) <= 16


async def test_beyond_the_bound_one_is_refused_and_there_is_room_again_afterwards() -> None:
    slow = Slow(most=8)
    asked = await slow.asked(8)
    with pytest.raises(QueueFull, match="8 calls wait"):
        await slow.ask()
    await slow.end()
    assert found(asked) == [0] * 8
    again = await slow.asked(8)
    await slow.end()
    assert found(again) == [1] * 8


async def test_who_leaves_takes_nothing_from_the_others_and_gives_their_place_back() -> None:
    slow = Slow(most=4)
    leaving, *others = await slow.asked(4)
    leaving.cancel()
    await settle()
    others += await slow.asked(1)
    await slow.end()
    assert leaving.cancelled()
    assert found(others) == [0] * 4


async def test_a_collection_that_nobody_waits_for_any_more_is_no_ones_error(caplog: pytest.LogCaptureFixture) -> None:
    slow = Slow()
    (leaving,) = await slow.asked()
    leaving.cancel()
    await settle()
    await slow.end(RuntimeError("away"))
    gc.collect()
    assert not caplog.records
    later = await slow.asked()
    await slow.end()
    assert found(later) == [1]


async def test_an_error_reaches_all_who_wait_and_none_who_come_later() -> None:
    slow = Slow()
    asked = await slow.asked(3)
    await slow.end(RuntimeError("away"))
    assert [str(task.exception()) for task in asked] == ["away"] * 3
    later = await slow.asked()
    await slow.end()
    assert found(later) == [1]


async def test_one_that_never_ends_is_given_up_and_the_next_one_begins() -> None:
    slow = Slow(limit_s=0.0)
    (asked,) = await slow.asked()
    with pytest.raises(NotReady, match="more than 0 s"):
        await asked
    assert (slow.began[0].cancelled(), slow.most) == (True, 1)
    (again,) = await slow.asked()
    with pytest.raises(NotReady):
        await again
    assert len(slow.began) == 2


async def test_it_runs_in_no_callers_context_so_that_it_does_not_end_with_their_call() -> None:
    slow = Slow()
    caller.set("one")
    await slow.asked()
    await slow.end()
    assert slow.callers == ["nobody"]


class Remembered(Slow):
    """The same, whose answers hold for two seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = Lasting(self._collect, 2.0, Bounds(), self.clock)  # type: ignore[assignment]


async def test_an_answer_that_lasts_is_given_for_its_life_and_collected_once_for_all_who_ask_afterwards() -> None:
    slow = Remembered()
    slow.clock.now = 5.0
    asked = await slow.asked(3)
    slow.clock.now = 5.5
    await slow.end()
    slow.clock.now = 7.4
    asked += await slow.asked(3)
    assert (found(asked), len(slow.began)) == ([0] * 6, 1)
    slow.clock.now = 7.5
    asked += await slow.asked(3)
    await slow.end()
    assert (found(asked), len(slow.began)) == ([0] * 6 + [1] * 3, 2)


async def test_an_error_lasts_for_nobody() -> None:
    slow = Remembered()
    (asked,) = await slow.asked()
    await slow.end(RuntimeError("away"))
    assert str(asked.exception()) == "away"
    later = await slow.asked()
    await slow.end()
    assert found(later) == [1]
