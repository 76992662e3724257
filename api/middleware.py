"""Middleware for every HTTP request: its id, a limit on its body, and a reply to unexpected exceptions."""

from __future__ import annotations

import re
from uuid import uuid4

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import to_problem
from api.prompts import too_large

REQUEST_ID = "x-request-id"
_GOOD_ID = re.compile(r"[\x21-\x7e]{1,128}")


def request_id(request: Request) -> str:
    return str(request.state.request_id)


class RequestIdMiddleware:
    """Gives each request an id.

    echo_id: whether to set the id on the response; false behind a proxy that does it itself, such as Ray Serve's.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int, echo_id: bool) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._echo_id = echo_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given_id = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given_id if _GOOD_ID.fullmatch(given_id) else uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            started = True
            if message["type"] == "http.response.start" and self._echo_id:
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            await self._app(scope, self._limited(scope, receive), send_with_id)
        except Exception as error:
            problem = to_problem(error, request_id)
            if started:  # too late for a status; the client sees that the connection is cut
                raise
            await JSONResponse(problem.body(), problem.row.status)(scope, receive, send_with_id)

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        declared = Headers(scope=scope).get("content-length", "0")
        num_bytes = int(declared) if declared.isdecimal() else 0
        num_read, complete = 0, False

        async def receive_limited() -> Message:
            nonlocal num_read, complete
            if complete:
                return await _disconnect(receive)
            message = await receive()
            num_read += len(message.get("body", b""))
            if max(num_read, num_bytes) > self._max_body_bytes:
                size = str(num_bytes) if num_bytes > self._max_body_bytes else f"at least {num_read}"
                raise HTTPException(413, too_large(size, self._max_body_bytes))
            complete = not message.get("more_body", False)
            return message

        return receive_limited


async def _disconnect(receive: Receive) -> Message:
    """Waits for the disconnect that follows the body. Ray Serve may report it by raising its own error."""
    try:
        return await receive()
    except Exception:
        return {"type": "http.disconnect"}
