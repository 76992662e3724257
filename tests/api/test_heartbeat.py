"""Comments in streams that are silent, by a clock that stands still unless a test moves it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.types import Message

from api.http import create_app
from api.streams import PING, Begun, Heartbeat
from protocol.errors import QueueFull
from protocol.request import FinishReason, GenerateRequest
from tests.api.api_twins import ScriptedBackend, runs_of, tiny_tokenizer

EVERY_S = 15.0
PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/responses")
ASKED: dict[str, Any] = {
    "/v1/completions": {"prompt": "import"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
    "/v1/responses": {"input": "a"},
}


class SleepingClock:
    """Sleepers wake when the clock has come to their time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._sleepers: list[tuple[float, asyncio.Event]] = []

    async def sleep(self, seconds: float) -> None:
        event = asyncio.Event()
        self._sleepers.append((self.now + seconds, event))
        await event.wait()

    async def advance(self, seconds: float) -> None:
        self.now += seconds
        for due, event in self._sleepers:
            if due <= self.now:
                event.set()
        await settle()


async def settle() -> None:
    """Everything runs that does not wait for an event of the test."""
    for _ in range(50):
        await asyncio.sleep(0)


class Exchange:
    """One streamed request, and what has come of it so far. Leaving the block closes the connection."""

    def __init__(self, backend: ScriptedBackend, clock: SleepingClock, path: str = PATHS[0]) -> None:
        app = create_app(backend, heartbeat=Heartbeat(EVERY_S, clock.sleep))
        self.status, self.text, self._backend = 0, "", backend
        body = json.dumps({"model": "tiny", "stream": True} | ASKED[path]).encode()
        self._body: Message | None = {"type": "http.request", "body": body, "more_body": False}
        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
        self._gone = asyncio.Event()
        self._task = asyncio.ensure_future(app(scope, self._receive, self._send))

    async def _receive(self) -> Message:
        if (message := self._body) is not None:
            self._body = None
            return message
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.status = message.get("status", self.status)
        self.text += message.get("body", b"").decode()

    @property
    def num_pings(self) -> int:
        return self.text.count(PING)

    @property
    def has_ended(self) -> bool:
        return self._task.done()

    async def __aenter__(self) -> Exchange:
        while not (self._backend.num_open or self.has_ended):  # a chat template is rendered by another process
            await asyncio.sleep(0.001)
        await settle()
        return self

    async def __aexit__(self, *raised: object) -> None:
        self._gone.set()
        await asyncio.wait_for(asyncio.gather(self._task, return_exceptions=True), 10)


class Paced(ScriptedBackend):
    """Gives three tokens, each when the test says so."""

    def __init__(self) -> None:
        self.turns = [asyncio.Event() for _ in range(3)]
        super().__init__(self._paced)

    def _paced(self, request: GenerateRequest) -> list[Any]:
        token = tiny_tokenizer().encode("import", add_special_tokens=False)[0]
        runs = runs_of(request, [token], [token], [token], reason=FinishReason.LENGTH)
        return [step for turn, run in zip(self.turns, runs, strict=True) for step in (turn, run)]


@pytest.fixture
def clock() -> SleepingClock:
    return SleepingClock()


@pytest.mark.parametrize("path", PATHS)
async def test_a_silent_stream_gets_a_comment_every_so_often(clock: SleepingClock, path: str) -> None:
    backend = Paced()
    async with Exchange(backend, clock, path) as exchange:
        backend.turns[0].set()
        await settle()
        assert (exchange.status, exchange.num_pings) == (200, 0)
        for count in range(1, 4):
            await clock.advance(EVERY_S - 1)
            assert exchange.num_pings == count - 1
            await clock.advance(1)
            assert exchange.num_pings == count
        backend.turns[1].set()
        await settle()
        await clock.advance(EVERY_S - 1)
        assert exchange.num_pings == 3, "an event begins the silence anew"
        backend.turns[2].set()
        await settle()
        assert exchange.has_ended
    without = [part for part in exchange.text.split("\n\n") if part and part != PING.strip()]
    assert all(part.startswith(("data: ", "event: ")) for part in without), "comments stand between events"


async def test_the_first_comment_may_come_before_the_first_token(clock: SleepingClock) -> None:
    backend = Paced()
    async with Exchange(backend, clock) as exchange:
        assert exchange.status == 0, "a full queue could still be a 429"
        await clock.advance(EVERY_S)
        assert exchange.status == 200
        await clock.advance(EVERY_S)
        assert exchange.num_pings == 1
        for turn in backend.turns:
            turn.set()
        await settle()
        assert exchange.text.endswith("data: [DONE]\n\n")
    assert backend.num_open == 0


async def test_an_error_before_the_first_comment_is_a_status_and_behind_it_an_event(clock: SleepingClock) -> None:
    async with Exchange(ScriptedBackend(lambda request: [QueueFull("full")]), clock) as exchange:
        assert exchange.status == 429
    late = asyncio.Event()
    async with Exchange(ScriptedBackend(lambda request: [late, QueueFull("full")]), clock) as exchange:
        await clock.advance(EVERY_S)
        late.set()
        await settle()
        assert exchange.status == 200
        assert '"code":"rate_limit_exceeded"' in exchange.text
        assert exchange.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("waits_s", [0.0, EVERY_S, 2 * EVERY_S])
async def test_a_client_that_leaves_ends_its_request_whatever_has_come(clock: SleepingClock, waits_s: float) -> None:
    backend = Paced()
    async with Exchange(backend, clock):
        await clock.advance(waits_s)
        assert backend.num_open == 1
    assert backend.num_open == 0


async def test_a_beginning_that_nobody_reads_is_closed() -> None:
    closed = asyncio.Event()

    async def items() -> AsyncIterator[int]:
        try:
            await asyncio.Event().wait()
            yield 1
        finally:
            closed.set()

    begun: Begun[int] = Begun(items())  # type: ignore[arg-type]
    await settle()
    await begun.aclose()
    assert closed.is_set()
