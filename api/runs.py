"""Checks runs of tokens: each token is passed on once, and none is missing."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from api.generation import BackendFault
from protocol.request import TokenRun


async def check_runs(
    runs: AsyncGenerator[TokenRun, None], sent: list[int] | None = None
) -> AsyncGenerator[TokenRun, None]:
    """Passes runs on without the tokens that came before.

    sent: the tokens that were passed on; those of `runs` are added. Raises BackendFault at a gap, if the last run is
    missing, or if a repeated token differs from the first time. The last run of a call repeats all of its tokens, so a
    token that the target did not write is always noticed.
    """
    sent = [] if sent is None else sent
    async with aclosing(runs):
        async for run in runs:
            count, last = len(sent), run.finish_reason is not None
            if run.index > count:
                raise BackendFault(f"tokens {count} to {run.index - 1} are missing")
            again, fresh = run.token_ids[: count - run.index], run.token_ids[count - run.index :]
            if again != tuple(sent[run.index : run.index + len(again)]):
                raise BackendFault("tokens that were sent twice differ")
            if last and run.index + len(run.token_ids) < count:
                raise BackendFault("more tokens were streamed than the last run has")
            sent += fresh
            if fresh or last:
                behind = slice(count - run.index, None)
                yield replace(
                    run, index=count, token_ids=fresh, logprobs=run.logprobs[behind], sources=run.sources[behind]
                )
            if last:
                return
    raise BackendFault("the stream ended without a finish reason")
