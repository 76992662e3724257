"""Requests that survive their replica: when it is lost, they go on at another one with the same text.

The tokens that came so far go with the request (`GenerateRequest.resume_ids`), so none is decoded twice. A token
depends on seed, position and the tokens before it, so those that follow are the ones that the lost replica would have
given. What the request itself is to blame for (refused, no next token, a step that failed) is never tried again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import count

from api.runs import check_runs
from protocol.errors import NotReady, QueueFull
from protocol.request import FinishReason, GenerateRequest, TokenRun

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0

logger = logging.getLogger(__name__)

Issue = Callable[[GenerateRequest], AsyncGenerator[TokenRun, None]]


@dataclass(frozen=True, slots=True)
class Recovery:
    """What may be done for a request that has lost its replica.

    reissues: replicas that it may lose in all and still go on. within_s: seconds without a new token after which it
    is not issued again.
    """

    reissues: int = 5
    within_s: float = 120.0


async def survive(issue: Issue, request: GenerateRequest, recovery: Recovery) -> AsyncGenerator[TokenRun, None]:
    """The runs of a request in order and without doubles, whichever replicas they come from.

    issue: the runs of one replica; raises NotReady if that replica is lost. Each time the request has another id, so
    that nothing that a lost replica still does is taken for another's. Raises the last error when recovery ends.
    """
    search = _Search(recovery)
    sent = list(request.resume_ids)
    for number in count():
        again = replace(request, request_id=f"{request.request_id}.{number}", resume_ids=tuple(sent))
        try:
            async with aclosing(check_runs(issue(again if number else request), sent)) as runs:
                async for run in runs:
                    closed = run.finish_reason is FinishReason.CLOSED
                    if run.token_ids or not closed:
                        yield _of(request, run, finished=not closed)
                    if closed:
                        raise NotReady("the model was stopped while it answered")
            return
        except (NotReady, QueueFull) as error:
            pause_s = search.failed(error, len(sent))
            logger.warning("request %s is issued again behind %d tokens: %s", request.request_id, len(sent), error)
        await asyncio.sleep(pause_s)


def _of(request: GenerateRequest, run: TokenRun, *, finished: bool) -> TokenRun:
    """The run under the caller's request id."""
    named = replace(run, request_id=request.request_id)
    return named if finished else replace(named, finish_reason=None, stats=None)


class _Search:
    """Counts what one request has lost, and how long it has looked for a replica since its last token."""

    def __init__(self, recovery: Recovery) -> None:
        self._recovery = recovery
        self._num_lost = 0
        self._num_tokens = -1  # when the search began
        self._began_s = 0.0
        self._pause_s = 0.0

    def failed(self, error: NotReady | QueueFull, num_tokens: int) -> float:
        """Seconds until the request may be issued again. Raises the error if it may not be."""
        now = asyncio.get_running_loop().time()
        self._num_lost += isinstance(error, NotReady)
        if num_tokens > self._num_tokens:
            self._num_tokens, self._began_s, self._pause_s = num_tokens, now, FIRST_PAUSE_S
        else:
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        over = now - self._began_s > self._recovery.within_s
        if not self._num_lost or self._num_lost > self._recovery.reissues or over:
            raise error
        return self._pause_s
