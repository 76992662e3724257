"""What some of several replicas answer: the one that does not hides none of the others."""

from __future__ import annotations

import asyncio

import pytest

from link.replies import in_time


def told(answer: str | Exception | None) -> asyncio.Future[str]:
    """None: not yet."""
    future = asyncio.get_running_loop().create_future()
    if isinstance(answer, Exception):
        future.set_exception(answer)
    elif answer is not None:
        future.set_result(answer)
    return future


async def test_a_frozen_replica_hides_none_of_the_others() -> None:
    frozen = told(None)
    assert await in_time([told("a"), frozen, told("b")], 0.0) == (["a", "b"], False)
    assert frozen.cancelled()


async def test_one_that_fails_has_answered() -> None:
    assert await in_time([told("a"), told(RuntimeError("away")), told("b")], 0.0) == (["a", "b"], True)


async def test_results_are_in_the_order_of_the_replicas_whoever_is_first() -> None:
    late = told(None)
    waiting = asyncio.ensure_future(in_time([late, told("b")], 60.0))
    await asyncio.sleep(0)
    late.set_result("a")
    assert await waiting == (["a", "b"], True)


async def test_where_there_is_no_replica_nobody_is_waited_for() -> None:
    assert await in_time([], 60.0) == ([], True)


async def test_who_stops_waiting_leaves_no_question_behind() -> None:
    frozen = told(None)
    waiting = asyncio.ensure_future(in_time([frozen], 60.0))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert frozen.cancelled()
