"""Runs of tokens as a caller may rely on them: each token once, none missing, whatever was sent twice."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from api.generation import BackendFault
from protocol.request import TokenRun


async def in_order(runs: AsyncGenerator[TokenRun, None]) -> AsyncGenerator[TokenRun, None]:
    """Drops tokens that came before, by index. Raises BackendFault at a gap, when the end is missing, and where tokens
    that come twice differ: the end of a call has all of its tokens, so nothing else gets into an answer unseen.
    """
    sent: list[int] = []
    async with aclosing(runs):
        async for run in runs:
            count, last = len(sent), run.finish_reason is not None
            if run.index > count:
                raise BackendFault(f"tokens {count} to {run.index - 1} are missing")
            again, fresh = run.token_ids[: count - run.index], run.token_ids[count - run.index :]
            if again != tuple(sent[run.index : run.index + len(again)]):
                raise BackendFault("tokens that came before are others now")
            if last and run.index + len(run.token_ids) < count:
                raise BackendFault("more tokens came than the end of the call has")
            if fresh or last:
                yield replace(run, index=count, token_ids=fresh)
            sent += fresh
            if last:
                return
    raise BackendFault("the stream ended without a finish reason")
