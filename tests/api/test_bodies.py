"""Requests that are refused, or must cost nobody else, before any parameter is looked at: bodies, routes and sizes."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import pytest

from api.limits import RequestLimits
from api.prompts import MAX_BODY_BYTES
from protocol.pb import inference_pb2 as pb
from tests.api.api_client import CHAT, COMPLETION, TEXT, Client, call, error_of
from tests.api.api_twins import CHAT_TEMPLATE, ScriptedBackend, card, says, tiny_tokenizer


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe{}", b"[" * 50_000, b'{"model": NaNN}', b"1" * 5_000],
    ids=lambda body: repr(body[:12]),
)
async def test_a_malformed_body_is_a_400(client: Client, body: bytes) -> None:
    for path in ("/v1/completions", "/v1/chat/completions"):
        error_of(await client.send_raw(path, body), 400)


async def test_a_missing_field_and_a_wrong_content_type_are_400s(client: Client) -> None:
    assert error_of(await client.post("/v1/completions", json={"model": "tiny"}), 400)["param"] == "prompt"
    response = await client.post("/v1/completions", content=json.dumps(COMPLETION), headers={"content-type": "text/x"})
    assert "application/json" in error_of(response, 400)["message"]


async def test_a_body_over_the_limit_is_refused_whether_or_not_it_says_its_size() -> None:
    async def drip() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 100

    async with Client(ScriptedBackend(says(TEXT)), limits=RequestLimits(body_bytes=1000)) as client:
        for content, size in ((b" " * 2000, "2000 bytes"), (drip(), "at least 1100 bytes")):
            response = await client.send_raw("/v1/completions", content)
            error = error_of(response, 413)
            assert error["message"].startswith(f"the request has {size}, and this server takes at most 1000; send")
            assert (error["type"], error["code"]) == ("invalid_request_error", "request_too_large")


def body_of(path: str, num_bytes: int) -> bytes:
    """A request whose text fills it up to this size."""

    def asking(text: str) -> str:
        if "chat" in path:
            return json.dumps(CHAT | {"messages": [{"role": "user", "content": text}]})
        return json.dumps(COMPLETION | {"prompt": text})

    return asking(("geheim" * (num_bytes // 6))[: num_bytes - len(asking(""))]).encode()


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize(("num_bytes", "status"), [(MAX_BODY_BYTES, 400), (MAX_BODY_BYTES + 1, 413), (5 << 20, 413)])
async def test_a_body_at_the_limit_is_read_and_one_over_it_is_not(
    client: Client, backend: ScriptedBackend, caplog: pytest.LogCaptureFixture, path: str, num_bytes: int, status: int
) -> None:
    content = body_of(path, num_bytes)
    assert len(content) == num_bytes
    response = await client.send_raw(path, content)
    error = error_of(response, status)
    assert error["code"] == ("request_too_large" if status == 413 else "context_length_exceeded")
    assert status == 400 or f"{num_bytes} bytes" in error["message"]
    assert "geheim" not in response.text + caplog.text
    assert backend.requests == []


async def test_a_grpc_message_over_the_limit_is_refused_by_its_size(backend: ScriptedBackend) -> None:
    message = pb.GenerateRequest(model="tiny", text="geheim" * 700_000)
    context = await call(backend, message)
    assert context.code is grpc.StatusCode.INVALID_ARGUMENT
    assert f"{message.ByteSize()} bytes, and this server takes at most {MAX_BODY_BYTES}" in context.details
    assert "geheim" not in context.details


async def test_a_wrong_path_or_method_has_an_error_body(client: Client) -> None:
    assert "/v1/nothing" in error_of(await client.get("/v1/nothing"), 404)["message"]
    assert "it takes POST" in error_of(await client.get("/v1/completions"), 405)["message"]


class Tokenizer:
    """The tiny one, whose every use holds its caller's thread until it is released."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.chat_template = CHAT_TEMPLATE
        self.num_uses = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(tiny_tokenizer(), name)

    def encode(self, text: str, **options: Any) -> list[int]:
        self._wait()
        return list(tiny_tokenizer().encode(text, **options))

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        self._wait()
        return str(tiny_tokenizer().apply_chat_template(messages, **options))

    def _wait(self) -> None:
        self.num_uses += 1
        assert self.released.wait(30)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_while_a_prompt_is_tokenized_others_are_answered(path: str) -> None:
    tokenizer: Any = Tokenizer()
    async with Client(ScriptedBackend(says(TEXT), (replace(card(), tokenizer=tokenizer),))) as client:
        asked = asyncio.create_task(client.post(path, json=CHAT if "chat" in path else COMPLETION))
        while not tokenizer.num_uses:
            await asyncio.sleep(0.01)
        assert (await client.get("/health")).status_code == 200
        assert not asked.done()
        tokenizer.released.set()
        assert (await asked).status_code == 200


async def test_a_prompt_whose_bytes_cannot_fit_is_refused_before_it_is_tokenized() -> None:
    tokenizer: Any = Tokenizer()
    tokenizer.released.set()
    async with Client(ScriptedBackend(says(TEXT), (replace(card(), tokenizer=tokenizer),))) as client:
        text = "x" * (64 * card().max_token_bytes + 1)
        for response in (
            await client.complete(prompt=text),
            await client.chat(messages=[{"role": "user", "content": text}]),
        ):
            error = error_of(response, 400)
            assert error["code"] == "context_length_exceeded"
            assert f"{len(text)} bytes" in error["message"]
        assert tokenizer.num_uses == 0
        assert "tokens" in error_of(await client.complete(prompt=text[:-1]), 400)["message"]
        assert tokenizer.num_uses == 1


async def test_the_tokenizer_does_not_complain_of_long_prompts(
    client: Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card().tokenizer, "model_max_length", 4)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    assert (await client.complete(prompt="import os, sys, re")).status_code == 200
    assert (await client.chat()).status_code == 200
    assert "sequence length" not in caplog.text
