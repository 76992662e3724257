"""Middleware for Ray Serve's HTTP proxies: renames the time-limit header, so that the ingress enforces the limit.

Serve itself would end a request with 408 and plain text, and would cut a stream without an error. Serve calls
`middlewares` because RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it.
"""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from api.time_limit import HEADER, PASSED_ON


class TimeLimitRenamer:
    """Passes the time-limit header on under the name PASSED_ON."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            names = {HEADER.encode(): PASSED_ON.encode()}
            scope = dict(scope, headers=[(names.get(name, name), value) for name, value in scope["headers"]])
        await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    return [Middleware(TimeLimitRenamer)]
