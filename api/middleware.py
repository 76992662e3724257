"""Around every HTTP request: its id, a limit on its body, and the answer to what nobody foresaw."""

from __future__ import annotations

import re
from uuid import uuid4

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import problem
from api.limits import too_large

REQUEST_ID = "x-request-id"
_GOOD_ID = re.compile(r"[\x21-\x7e]{1,128}")


def request_id(request: Request) -> str:
    return str(request.state.request_id)


class Around:
    """echo_id: off where a proxy in front puts the id on the response itself, as Ray Serve's does."""

    def __init__(self, app: ASGIApp, max_body_bytes: int, echo_id: bool) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._echo_id = echo_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope).get(REQUEST_ID, "")
        own_id = asked if _GOOD_ID.fullmatch(asked) else uuid4().hex
        scope.setdefault("state", {})["request_id"] = own_id
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            started = True
            if message["type"] == "http.response.start" and self._echo_id:
                MutableHeaders(scope=message)[REQUEST_ID] = own_id
            await send(message)

        try:
            await self._app(scope, self._limited(scope, receive), send_with_id)
        except Exception as error:
            found = problem(error, own_id)
            if started:  # too late for a status: the connection is cut, which the client does see
                raise
            await JSONResponse(found.body(), found.row.status)(scope, receive, send_with_id)

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
    """After the body there is only the end to wait for. Ray Serve may tell of it by an error of its own."""
    try:
        return await receive()
    except Exception:
        return {"type": "http.disconnect"}
