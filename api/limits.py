"""What a request over HTTP may hold, checked before anything else looks at it: its head, then its body."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.prompts import MAX_BODY_BYTES, too_large
from protocol.errors import BodyTooLarge, HeadTooLarge, InvalidRequest, TimedOut

CLIENT_GONE_STATUS = 499  # nginx's number; the client has left, so only access logs show it
WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS"})

_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """head_bytes: of URL and headers. body_s: seconds in which the body must have come.

    values: lists and objects in a body, since checking them takes the event loop some 15 us each. depth: of these.
    """

    headers: int = 100
    head_bytes: int = 32 << 10
    body_bytes: int = MAX_BODY_BYTES
    body_s: float = 60.0
    values: int = 16_384
    depth: int = 64


LIMITS = RequestLimits()


class ClientLeft(Exception):
    """The client closed the connection before its body was complete."""


class LimitsMiddleware:
    """Hands the application whole bodies that are within the limits. Raises InvalidRequest or TimedOut for others."""

    def __init__(self, app: ASGIApp, limits: RequestLimits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            check_head(scope, self._limits)
            if scope["method"] not in WITHOUT_BODY:
                try:
                    body = await read_body(scope, receive, self._limits)
                except ClientLeft:
                    await Response(status_code=CLIENT_GONE_STATUS)(scope, receive, send)
                    return
                receive = _after(body, receive)
        await self._app(scope, receive, send)


def check_head(scope: Scope, limits: RequestLimits) -> None:
    """Raises HeadTooLarge."""
    headers = scope["headers"]
    if len(headers) > limits.headers:
        raise HeadTooLarge(f"the request has {len(headers)} headers; send {limits.headers} at most")
    address = len(scope["path"]) + len(scope.get("query_string", b""))
    if (size := address + sum(len(name) + len(value) for name, value in headers)) > limits.head_bytes:
        raise HeadTooLarge(f"URL and headers have {size} bytes; send {limits.head_bytes} at most")


async def read_body(scope: Scope, receive: Receive, limits: RequestLimits) -> bytes:
    """The whole body. Raises BodyTooLarge at the first byte too many, TimedOut, InvalidRequest, or ClientLeft."""
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    num_bytes = int(declared) if declared.isdigit() and len(declared) < 20 else 0
    if num_bytes > limits.body_bytes:
        raise BodyTooLarge(too_large(str(num_bytes), limits.body_bytes))
    try:
        async with asyncio.timeout(limits.body_s):
            body = await _joined(receive, limits.body_bytes)
    except TimeoutError:
        raise TimedOut(f"the body did not come within {limits.body_s:g} s; send it faster, or a shorter one") from None
    num_values, depth = nesting(body)
    if num_values > limits.values:
        raise InvalidRequest(f"the body has {num_values} lists and objects; send {limits.values} at most")
    if depth > limits.depth:
        raise InvalidRequest(f"the body nests lists and objects {depth} deep; send {limits.depth} at most")
    return body


async def _joined(receive: Receive, limit: int) -> bytes:
    parts, num_read, more = list[bytes](), 0, True
    while more:
        message = await _next(receive)
        if message["type"] == "http.disconnect":
            raise ClientLeft
        parts.append(message.get("body", b""))
        num_read += len(parts[-1])
        if num_read > limit:
            raise BodyTooLarge(too_large(f"at least {num_read}", limit))
        more = message.get("more_body", False)
    return b"".join(parts)


def _after(body: bytes, receive: Receive) -> Receive:
    """Gives the body once, then waits for the client to leave."""
    first = True

    async def received() -> Message:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await _next(receive)

    return received


async def _next(receive: Receive) -> Message:
    """Ray Serve may report a disconnect by raising its own error."""
    try:
        return await receive()
    except Exception:
        return {"type": "http.disconnect"}


def nesting(body: bytes) -> tuple[int, int]:
    """How many lists and objects the JSON has, and how deep they nest. Of no JSON, at least the part that is."""
    outside = b"".join(body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    brackets = np.frombuffer(outside.translate(None, _NO_BRACKETS), np.uint8)
    opens = (brackets == ord("[")) | (brackets == ord("{"))
    depths = np.where(opens, 1, -1).cumsum(dtype=np.int64)
    return int(opens.sum()), int(depths.max(initial=0))
