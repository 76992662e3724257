"""How long a request may take, as its caller or the operator has it, and how it ends when that is over."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from api.time_limit import HEADER, PASSED_ON
from deployments.proxy import middlewares
from protocol.request import GenerateRequest
from tests.api.api_client import CHAT, COMPLETION, TEXT, Client, error_of, events
from tests.api.api_twins import ScriptedBackend, runs_of, says


def hangs(request: GenerateRequest) -> list[Any]:
    return [*runs_of(request, [70, 71], [72])[:1], asyncio.Event()]


@pytest.mark.parametrize("header", [HEADER, PASSED_ON])
@pytest.mark.parametrize(("path", "body"), [("/v1/completions", COMPLETION), ("/v1/chat/completions", CHAT)])
async def test_a_request_whose_time_is_over_has_an_error_body(path: str, body: dict[str, Any], header: str) -> None:
    backend = ScriptedBackend(hangs)
    async with Client(backend) as client:
        error = error_of(await client.post(path, json=body, headers={header: "0.05"}), 408)
        assert (error["type"], error["code"]) == ("timeout_error", "request_timeout")
        assert "longer than 0.05 s, its limit; ask for fewer tokens" in error["message"]
        *chunks, last = events(await client.post(path, json=body | {"stream": True}, headers={header: "0.05"}))
        assert last["error"]["code"] == "request_timeout"
        assert chunks
    assert backend.num_open == 0


async def test_time_that_is_over_before_the_first_token_is_a_status_in_a_stream_too() -> None:
    backend = ScriptedBackend(lambda request: [asyncio.Event()])
    async with Client(backend) as client:
        response = await client.post("/v1/completions", json=COMPLETION | {"stream": True}, headers={HEADER: "0.05"})
        error_of(response, 408)
    assert backend.num_open == 0


async def test_the_operators_limit_holds_whatever_a_caller_asks() -> None:
    async with Client(ScriptedBackend(hangs), request_timeout_s=0.05) as client:
        for asked in ("60", "0", "-1", "nan", "soon", ""):
            response = await client.post("/v1/completions", json=COMPLETION, headers={HEADER: asked})
            assert "0.05 s" in error_of(response, 408)["message"]


async def test_an_answer_in_time_is_unchanged() -> None:
    async with Client(ScriptedBackend(says(TEXT)), request_timeout_s=60) as client:
        assert (await client.complete()).json()["choices"][0]["text"] == TEXT
        chunks = events(await client.complete(stream=True))
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == TEXT


async def test_the_time_limit_header_is_hidden_from_serves_proxy() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend(scope["headers"])

    (middleware,) = middlewares()
    scope = {"type": "http", "headers": [(b"accept", b"x"), (HEADER.encode(), b"5")]}
    await middleware.cls(app)(scope, None, None)  # type: ignore[arg-type, call-arg]
    assert seen == [(b"accept", b"x"), (PASSED_ON.encode(), b"5")]
