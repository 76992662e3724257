"""Calls through Serve handles: a reply, what all replicas tell, and Ray's errors in our words."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any

import grpc
import grpc.aio
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
    RequestCancelledError,
)
from ray.serve.handle import DeploymentHandle

from link.discovery import Found
from link.liveness import Census, take_census
from link.replies import in_time
from protocol.errors import DraftPoolError, NotReady, QueueFull
from protocol.request import TokenRun

STATS_TIMEOUT_S = 2.0

# How a call ends whose connection broke. A replica's own errors come as its answer.
BROKEN = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL})
LOST = RayActorError | DeploymentUnavailableError | ReplicaUnavailableError | RequestCancelledError

Handle = DeploymentHandle[Any]


async def await_reply(response: Any) -> TokenRun:
    """The reply of a target's `generate`; raises its translated error. Cancelling the coroutine cancels the call.

    A call that somebody else has cancelled is lost, for CancelledError would end our caller without a word.
    """
    try:
        answer: TokenRun | DraftPoolError = await response
    except asyncio.CancelledError:
        response.cancel()
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise NotReady("the call was cancelled at the replica") from None
    except Exception as error:
        raise translate_error(error) from None
    if isinstance(answer, DraftPoolError):
        raise answer
    return answer


async def broadcast(handle: Handle, method: str, *args: int | str) -> list[Any]:
    """The results of a method of all replicas, from those that answer in time."""
    return (await _told(handle, method, *args))[0]


async def discover(pool: Handle) -> Found:
    """The draft replicas that answer in time."""
    return Found(*await _told(pool, "describe"))


async def _told(handle: Handle, method: str, *args: int | str) -> tuple[list[Any], bool]:
    """The results, and whether all replicas answered in time."""
    clock = asyncio.get_running_loop().time
    end_s = clock() + STATS_TIMEOUT_S
    try:
        answers = await asyncio.wait_for(_answers(handle, method, *args), STATS_TIMEOUT_S)
    except Exception:  # no replica is there
        return [], False
    return await in_time(answers, end_s - clock())


async def open_requests(handle: Handle, timeout_s: float) -> Census:
    """Asks all replicas for their open requests. Without replicas there are none."""
    try:
        answers = await _answers(handle, "open_requests")
    except DeploymentUnavailableError:
        return Census()
    return await take_census(answers, timeout_s)


async def _answers(handle: Handle, method: str, *args: int | str) -> Sequence[Awaitable[Any]]:
    """One of each replica. Serve's `results_async` would give none unless all replicas answer."""
    response: Any = handle.broadcast(method, *args)
    return [result.get_async() for result in await response._fetch_replica_results_async()]


def translate_error(error: Exception) -> Exception:
    """The replica's own error, or the API's error for a lost or full replica. Others are returned unchanged."""
    if isinstance(error, RayTaskError):
        cause = error.cause
        return translate_error(cause) if isinstance(cause, Exception) and cause is not error else error
    if isinstance(error, BackPressureError):
        return QueueFull("too many requests are queued")
    if isinstance(error, LOST) or (isinstance(error, grpc.aio.AioRpcError) and error.code() in BROKEN):
        return NotReady("the replica that had the request was lost")
    return error
