"""Runs of tokens as they come from a target: doubles are dropped, and gaps and contradictions are faults."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest

from api.generation import BackendFault
from api.runs import check_runs
from protocol.request import FinishReason, TokenRun


def run(index: int, *tokens: int, last: bool = False) -> TokenRun:
    return TokenRun("r", index, tokens, FinishReason.LENGTH if last else None)


async def source(*runs: TokenRun) -> AsyncGenerator[TokenRun, None]:
    for each in runs:
        yield each


async def test_tokens_that_come_twice_are_dropped_by_their_index() -> None:
    twice = source(run(0, 5, 6), run(0, 5), run(1, 6, 7), run(0, 5, 6, 7, 8), run(0, 5, 6, 7, 8, last=True))
    assert [each async for each in check_runs(twice)] == [run(0, 5, 6), run(2, 7), run(3, 8), run(4, last=True)]


async def test_a_gap_is_a_fault() -> None:
    with pytest.raises(BackendFault, match="tokens 1 to 1 are missing"):
        [each async for each in check_runs(source(run(0, 5), run(2, 7), run(3, 8, last=True)))]


@pytest.mark.parametrize(
    "runs",
    [
        [run(0, 5, 99), run(0, 5, 6, 7, last=True)],
        [run(0, 5, 99), run(1, 6), run(0, 5, 99, 7, last=True)],
        [run(0, 5), run(1, 99), run(2, 99), run(0, 5, 99, last=True)],
        [run(0, 99), run(0, last=True)],
    ],
    ids=["another token", "two that differ", "more than the end has", "none at the end"],
)
async def test_what_was_streamed_is_the_beginning_of_what_the_call_ends_with(runs: list[TokenRun]) -> None:
    with pytest.raises(BackendFault):
        [each async for each in check_runs(source(*runs))]


async def test_a_stream_that_just_ends_is_a_fault() -> None:
    with pytest.raises(BackendFault, match="without a finish reason"):
        [each async for each in check_runs(source(run(0, 5)))]


async def test_the_check_closes_what_it_reads() -> None:
    closed = []

    async def two() -> Any:
        try:
            yield run(0, 5)
            yield run(1, 6)
        finally:
            closed.append(True)

    async with aclosing(check_runs(two())) as runs:
        await anext(runs)
    assert closed == [True]
