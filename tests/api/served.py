"""The app on a real socket, for clients of OpenAI's API."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from api.backend import Backend
from tests.bench.http_server import http_server


@contextmanager
def served(backend: Backend) -> Iterator[str]:
    """The address as such clients take it."""
    with http_server(backend) as url:
        yield f"{url}/v1"
