"""The app under uvicorn on a free loopback port, for clients that need a real connection."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from api.backend import Backend
from api.http import create_app


@contextmanager
def served(backend: Backend) -> Iterator[str]:
    """The address of the API, as clients of OpenAI's take it."""
    config = uvicorn.Config(create_app(backend), host="127.0.0.1", port=0, log_level="error", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    server.should_exit = True
    thread.join()
