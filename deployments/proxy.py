"""What runs in Ray Serve's HTTP proxies: a caller's time limit is for us to keep, and to answer for.

Serve would end a request by 408 and plain text, and cut a stream without a word. So its header reaches the ingress
under another name. Serve calls `middlewares` where RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it.
"""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from api.time_limit import HEADER, PASSED_ON


class OwnTimeLimit:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            names = {HEADER.encode(): PASSED_ON.encode()}
            scope = dict(scope, headers=[(names.get(name, name), value) for name, value in scope["headers"]])
        await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    return [Middleware(OwnTimeLimit)]
