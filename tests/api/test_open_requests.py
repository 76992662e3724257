"""Requests that end because somebody names their id: their work is cancelled, and nothing is kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from api.open_requests import OpenRequests
from protocol.errors import Aborted


class Work:
    """Counts what is under way."""

    def __init__(self) -> None:
        self.num_open = 0

    async def wait(self) -> int:
        self.num_open += 1
        try:
            await asyncio.sleep(60)
            return 5
        finally:
            self.num_open -= 1

    async def count(self) -> AsyncGenerator[int, None]:
        self.num_open += 1
        try:
            yield 1
            await asyncio.sleep(60)
            yield 2
        finally:
            self.num_open -= 1


async def test_a_result_that_is_waited_for_is_aborted_by_its_id_alone() -> None:
    requests, work = OpenRequests(), Work()
    tasks = [asyncio.create_task(requests.run(name, work.wait())) for name in ("a-0", "a-1", "a-1-x", "ab")]
    await asyncio.sleep(0)
    assert not requests.abort("b")
    assert requests.abort("a")
    for task in tasks[:2]:
        with pytest.raises(Aborted):
            await task
    assert (work.num_open, len(requests)) == (2, 2)
    for task in tasks[2:]:
        task.cancel()
    await asyncio.gather(*tasks[2:], return_exceptions=True)
    assert (work.num_open, len(requests)) == (0, 0)


async def test_items_end_at_an_abort_while_they_are_waited_for_and_between_two() -> None:
    for is_waiting in (True, False):
        requests, work = OpenRequests(), Work()
        items = requests.watch("a", work.count())
        assert await anext(items) == 1
        if is_waiting:
            asyncio.get_running_loop().call_soon(requests.abort, "a")
        else:
            assert requests.abort("a")
        with pytest.raises(Aborted):
            await anext(items)
        assert (work.num_open, len(requests)) == (0, 0)


async def test_what_the_work_returns_and_raises_comes_through() -> None:
    requests = OpenRequests()

    async def give() -> int:
        return 5

    async def fail() -> int:
        raise TimeoutError("of its own")

    assert await requests.run("a", give()) == 5
    with pytest.raises(TimeoutError, match="of its own"):
        await requests.run("a", fail())
    assert not requests.abort("a")
