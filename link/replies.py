"""What several replicas answer, as far as they do in time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def in_time(answers: Iterable[Awaitable[T]], timeout_s: float) -> tuple[list[T], bool]:
    """The results in the order of the replicas, and whether all answered.

    One that answers with an error has answered, and has no result. Those that are late are cancelled.
    """
    pending = [asyncio.ensure_future(answer) for answer in answers]
    if not pending:
        return [], True
    try:
        done, late = await asyncio.wait(pending, timeout=timeout_s)
    finally:
        for answer in pending:
            answer.cancel()
    good = [one for one in pending if one in done and not one.cancelled() and one.exception() is None]
    return [one.result() for one in good], not late
