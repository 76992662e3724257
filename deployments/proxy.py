"""Middleware for Ray Serve's HTTP proxies, for two headers that Serve acts on before the ingress sees them.

Serve calls `middlewares` because RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it.
"""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from api.middleware import REQUEST_ID, is_good_id
from api.time_limit import HEADER, PASSED_ON


class HeaderGuard:
    """Renames the time-limit header to PASSED_ON, and drops malformed request ids.

    Serve would act on that header: end a request with 408 and plain text, and cut a stream without an error. It would
    also return any id as it came; without one it makes its own.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            names = {HEADER.encode(): PASSED_ON.encode()}
            headers = [(names.get(name, name), value) for name, value in scope["headers"] if _is_good(name, value)]
            scope = dict(scope, headers=headers)
        await self._app(scope, receive, send)


def _is_good(name: bytes, value: bytes) -> bool:
    return name != REQUEST_ID.encode() or is_good_id(value.decode("latin-1"))


def middlewares() -> list[Middleware]:
    return [Middleware(HeaderGuard)]
