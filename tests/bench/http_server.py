"""The API on a real socket, over any backend, for the tests of what drives it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from api.backend import Backend
from api.http import create_app
from link.listening import free_port


@contextmanager
def http_server(backend: Backend, **options: Any) -> Iterator[str]:
    """Yields its URL; a thread of this process runs it. options: of create_app."""
    app = create_app(backend, **options)
    config = uvicorn.Config(app, port=free_port(), log_level="error", lifespan="off", loop="asyncio")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{config.port}"
    finally:
        server.should_exit = True
        thread.join()
