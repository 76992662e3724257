"""Middleware for every HTTP request: its id, and a reply to what the middleware and the handlers within raise."""

from __future__ import annotations

import re
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import to_problem
from api.logs import request_logged

REQUEST_ID = "x-request-id"
_GOOD_ID = re.compile(r"[\x21-\x7e]{1,128}")


def is_good_id(given: str) -> bool:
    """Whether it may stand in logs and headers."""
    return _GOOD_ID.fullmatch(given) is not None


def request_id(request: Request) -> str:
    return str(request.state.request_id)


class RequestIdMiddleware:
    """Gives each request an id.

    echo_id: whether to set the id on the response; false behind a proxy that does it itself, such as Ray Serve's.
    """

    def __init__(self, app: ASGIApp, echo_id: bool) -> None:
        self._app = app
        self._echo_id = echo_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given_id = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given_id if is_good_id(given_id) else uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            started = True
            if message["type"] == "http.response.start" and self._echo_id:
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            with request_logged(request_id):
                await self._app(scope, receive, send_with_id)
        except Exception as error:
            with request_logged(request_id):
                problem = to_problem(error, request_id)
            if started:  # too late for a status; the client sees that the connection is cut
                raise
            headers = problem.headers()
            if problem.row.status == 408:  # the rest of the body is not waited for
                headers["connection"] = "close"
            await JSONResponse(problem.body(), problem.row.status, headers)(scope, receive, send_with_id)
