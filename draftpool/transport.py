"""What carries requests to a server: HTTP or gRPC, by the scheme of the URL."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

from draftpool.asks import Ask
from draftpool.values import Completion, Delta, Model
from protocol.errors import ConfigError


class Transport(Protocol):
    """Each method makes one attempt of at most limit_s seconds, and raises Refused with the error."""

    def complete(self, ask: Ask, limit_s: float | None) -> Completion: ...

    def stream(self, ask: Ask, limit_s: float | None) -> Generator[Delta, None, None]:
        """The last delta has a finish reason. Closing the generator cancels the request on the server."""

    def models(self, limit_s: float | None) -> tuple[Model, ...]: ...

    def close(self) -> None: ...


class AsyncTransport(Protocol):
    """As Transport. Cancelling a coroutine cancels the request on the server too."""

    async def complete(self, ask: Ask, limit_s: float | None) -> Completion: ...

    def stream(self, ask: Ask, limit_s: float | None) -> AsyncGenerator[Delta, None]: ...

    async def models(self, limit_s: float | None) -> tuple[Model, ...]: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server is, and how it knows the caller. application: its name in Ray Serve, which routes gRPC by it."""

    scheme: str
    address: str
    api_key: str | None = field(repr=False)
    application: str = "draftpool"

    @property
    def is_grpc(self) -> bool:
        return self.scheme in ("grpc", "grpcs")


def parse(url: str, api_key: str | None) -> Server:
    """Raises ConfigError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https", "grpc", "grpcs") or not parts.netloc:
        raise ConfigError(f"{url!r} is no server; give http://HOST:PORT, https://..., grpc://HOST:PORT or grpcs://...")
    return Server(parts.scheme, parts.netloc + parts.path.rstrip("/"), api_key)
