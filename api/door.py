"""Who may come in: callers with an API key, operators with an admin key, and anybody where no keys are set."""

from __future__ import annotations

from dataclasses import dataclass

from starlette._utils import get_route_path
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api import page_route
from api.keys import Keys
from protocol.errors import Unauthenticated

HEADER = "authorization"  # in gRPC, a key of the metadata
FREE_PATHS = frozenset({"/health", "/ready", *page_route.PATHS})  # probes have no key, and the page asks for it
OPERATOR_PATHS = ("/debug", "/metrics")


@dataclass(frozen=True, slots=True)
class Door:
    """keys: let callers in; None: everybody may call. admin_keys: let in everywhere; None: operators are callers."""

    keys: Keys | None = None
    admin_keys: Keys | None = None

    def admit_caller(self, authorization: str | None) -> None:
        """Raises Unauthenticated without a key."""
        if self.keys is None:
            return
        key = bearer(authorization, "an API key")
        if not any([self.keys.hold(key), self.admin_keys is not None and self.admin_keys.hold(key)]):
            raise Unauthenticated("this API key is none of this server's; send another, or ask its operator for one")

    def admit_operator(self, authorization: str | None) -> None:
        """Raises Unauthenticated without an admin key, where there are any."""
        if self.admin_keys is None:
            self.admit_caller(authorization)
        elif not self.admin_keys.hold(bearer(authorization, "an admin key")):
            raise Unauthenticated("this key is no admin key of this server, which is needed here; send another")

    def admit(self, path: str, authorization: str | None) -> None:
        """Whoever asks for this path over HTTP."""
        if path.startswith(OPERATOR_PATHS):
            self.admit_operator(authorization)
        elif path not in FREE_PATHS:
            self.admit_caller(authorization)


OPEN = Door()


def bearer(authorization: str | None, what: str) -> str:
    """The key in a header. Raises Unauthenticated if there is none."""
    scheme, _, key = (authorization or "").strip().partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise Unauthenticated(f"{what} is needed; send the header Authorization: Bearer KEY")
    return key.strip()


class DoorMiddleware:
    """Refuses a request before its body is read. Takes the path that the router takes, however it is spelled."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self._door.admit(get_route_path(scope), Headers(scope=scope).get(HEADER))
        await self._app(scope, receive, send)
