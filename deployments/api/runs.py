"""Runs of tokens as a caller may rely on them: each token once, none missing, whatever was sent twice."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from deployments.api.generation import BackendFault
from protocol.request import TokenRun


async def in_order(runs: AsyncGenerator[TokenRun, None]) -> AsyncGenerator[TokenRun, None]:
    """Drops tokens that came before, by index. Raises BackendFault at a gap, and when the end is missing."""
    count = 0
    async with aclosing(runs):
        async for run in runs:
            if run.index > count:
                raise BackendFault(f"tokens {count} to {run.index - 1} are missing")
            fresh = run.token_ids[count - run.index :]
            if fresh or run.finish_reason is not None:
                yield replace(run, index=count, token_ids=fresh)
            count += len(fresh)
            if run.finish_reason is not None:
                return
    raise BackendFault("the stream ended without a finish reason")
