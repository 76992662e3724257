"""A stream that is left early is no work for the server any more, over HTTP and gRPC."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from protocol.request import GenerateRequest, TokenRun
from targets.engine import Engine, OnRun
from tests.api.api_twins import EngineBackend, card, make_engine
from tests.client.conftest import Connect, Serve


class Stepwise:
    """An engine whose rounds wait for a permit each, so that what happens between two rounds is certain."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.permits = threading.Semaphore(0)
        self.cancelled = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def submit(self, request: GenerateRequest, on_run: OnRun) -> None:
        def on_permitted_run(run: TokenRun) -> None:
            if run.finish_reason is None:
                assert self.permits.acquire(timeout=30)
            on_run(run)

        self.engine.submit(request, on_permitted_run)

    def cancel(self, request_id: str) -> None:
        self.engine.cancel(request_id)
        self.cancelled.set()


@pytest.fixture
def stepwise(tmp_path: Path) -> Iterator[Stepwise]:
    engine = make_engine(tmp_path)
    yield (made := Stepwise(engine))
    made.permits.release(1000)
    engine.stop()


@pytest.mark.parametrize("ends", ["closed", "left by an error"])
def test_a_stream_left_early_frees_the_server_within_two_rounds(
    stepwise: Stepwise, serve: Serve, connect: Connect, ends: str
) -> None:
    backend: Any = EngineBackend(stepwise, card(max_model_len=256))  # type: ignore[arg-type]
    with serve(backend) as servers:
        stepwise.permits.release(2)
        stream = connect(servers).stream("tiny", "import", max_tokens=200, ignore_eos=True)
        if ends == "closed":
            next(stream)
            stream.close()
        else:
            with suppress(ZeroDivisionError), stream:
                raise ZeroDivisionError(next(stream))
        assert stepwise.cancelled.wait(10), "the server learns of it without a further round"
        num_steps = stepwise.stats().num_steps
        stepwise.permits.release(1000)
        deadline = time.monotonic() + 10
        while stepwise.stats().num_running:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        stats = stepwise.stats()
    assert stats.num_steps - num_steps <= 2
    assert stats.num_free_pages == stats.num_pages
