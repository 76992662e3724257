"""Clients of the API over a scripted backend, in process, and how their answers are read."""

from __future__ import annotations

import json
from typing import Any

import grpc
import httpx

from api import rpc
from api.http import create_app
from api.refused import CallRefused
from protocol.pb import inference_pb2 as pb
from tests.api.api_twins import ScriptedBackend

TEXT = "grüße 🙂 def add(a, b):\n    return"
COMPLETION = {"model": "tiny", "prompt": "import"}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "grüße"}]}


class Client(httpx.AsyncClient):
    def __init__(self, backend: ScriptedBackend, **options: Any) -> None:
        transport = httpx.ASGITransport(create_app(backend, **options), raise_app_exceptions=False)
        super().__init__(transport=transport, base_url="http://test")

    async def complete(self, **changes: Any) -> httpx.Response:
        return await self.post("/v1/completions", json=COMPLETION | changes)

    async def complete_raw(self, **changes: Any) -> httpx.Response:
        """As `complete`, for values that httpx would not write as JSON."""
        return await self.send_raw("/v1/completions", json.dumps(COMPLETION | changes).encode())

    async def send_raw(self, path: str, content: Any) -> httpx.Response:
        return await self.post(path, content=content, headers={"content-type": "application/json"})

    async def chat(self, **changes: Any) -> httpx.Response:
        return await self.post("/v1/chat/completions", json=CHAT | changes)


def events(response: httpx.Response) -> list[Any]:
    """The JSON of every event; the stream must end with [DONE]."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *datas, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(data.removeprefix("data: ")) for data in datas]


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    fields: dict[str, Any] = body["error"]
    return fields


class Context:
    """What a servicer is told of a call, and what it says of its end."""

    def __init__(self, **metadata: str) -> None:
        self.code = grpc.StatusCode.OK
        self.details = ""
        self._metadata = metadata

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return list(self._metadata.items())


async def call(backend: ScriptedBackend, message: pb.GenerateRequest) -> Context:
    """One gRPC call to its end."""
    context = Context()
    try:
        _ = [response async for response in rpc.generate(backend, message, context)]
    except CallRefused:
        assert context.code is not grpc.StatusCode.OK
    return context
