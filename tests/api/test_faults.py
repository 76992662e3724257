"""What callers see when a target is away, full or broken, and what is left when a caller goes: nothing."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace
from typing import Any

import grpc
import pytest

from api.backend import Starting
from api.http import create_app, not_ready
from protocol.errors import InvalidRequest, NotReady, QueueFull, TryLater
from protocol.pb import inference_pb2 as pb
from protocol.request import FinishReason, GenerateRequest
from tests.api.api_client import COMPLETION, TEXT, Client, call, error_of, events
from tests.api.api_twins import ScriptedBackend, card, runs_of, says


async def test_an_unknown_model_is_a_404(client: Client) -> None:
    for response in (await client.complete(model="huge"), await client.chat(model="huge")):
        error = error_of(response, 404)
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert "tiny" in error["message"]
    assert error_of(await client.get("/v1/models/huge"), 404)["code"] == "model_not_found"


async def test_health_is_of_this_process_and_readiness_of_each_model() -> None:
    backend = ScriptedBackend(says(TEXT), (card("up"), card("down")), away=("down",))
    async with Client(backend) as client:
        for path in ("/health", "/ready?model=up"):
            response = await client.get(path)
            assert (response.status_code, response.content) == (200, b"")
        for path in ("/ready", "/ready?model=down"):
            response = await client.get(path)
            assert error_of(response, 503)["message"] == "not ready: down; try again in 1 s"
            assert response.headers["retry-after"] == "1"
        backend.starts = {"down": Starting("weights, 12 of 30")}
        told = error_of(await client.get("/ready"), 503)["message"]
        assert told == "not ready: down (weights, 12 of 30); try again in 1 s"
        backend.starts = {"down": Starting("weights, 12 of 30", 17.2)}
        told = error_of(response := await client.get("/ready"), 503)["message"]
        assert told == "not ready: down (weights, 12 of 30); try again in 18 s"
        assert response.headers["retry-after"] == "18"
        assert error_of(await client.get("/ready?model=huge"), 404)["code"] == "model_not_found"
        backend.away = ()
        assert (await client.get("/ready")).status_code == 200


async def test_before_any_model_is_known_a_request_is_a_503(client: Client, backend: ScriptedBackend) -> None:
    backend.away = ("tiny",)
    for response in (await client.complete(), await client.get("/v1/models"), await client.get("/v1/models/tiny")):
        assert error_of(response, 503)["type"] == "service_unavailable"
        assert response.headers["retry-after"] == "1"
    error_of(await client.complete(model="huge"), 404)


async def test_a_request_for_a_model_that_loads_is_told_how_long_that_takes() -> None:
    backend = ScriptedBackend(says(TEXT), away=("tiny",))
    backend.starts = {"tiny": Starting("weights, 3 of 4", 9.1)}
    async with Client(backend) as client:
        for response in (await client.complete(), await client.chat(stream=True), await client.get("/v1/models/tiny")):
            assert error_of(response, 503)["message"] == "model tiny is still loading; try again in 10 s"
            assert response.headers["retry-after"] == "10"
    told = await call(backend, pb.GenerateRequest(model="tiny", text="import"))
    assert told.code is grpc.StatusCode.UNAVAILABLE
    assert told.details == "model tiny is still loading; try again in 10 s"


@pytest.mark.parametrize(
    ("left", "known_s"),
    [((3.0, 20.0), 20.0), ((20.0, 3.0), 20.0), ((3.0, None), None), ((None, None), None), ((0.0, 2.0), 2.0)],
)
def test_several_models_are_waited_for_until_the_slowest_is_there(
    left: tuple[float | None, ...], known_s: float | None
) -> None:
    assert not_ready(["a", "b"], [Starting("", left_s) for left_s in left]).retry_after_s == known_s


async def test_a_target_that_is_away_takes_no_other_one_with_it() -> None:
    backend = ScriptedBackend(says(TEXT), (card("up"), card("down")), away=("down",))
    async with Client(backend) as client:
        assert (await client.complete(model="up")).status_code == 200
        error_of(await client.complete(model="down"), 503)
        assert [model["id"] for model in (await client.get("/v1/models")).json()["data"]] == ["up"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (QueueFull("9 requests are queued"), 429),
        (NotReady("loading"), 503),
        (InvalidRequest("no", "top_k"), 400),
        (RuntimeError("secret prompt"), 500),
    ],
)
async def test_an_error_before_the_first_token_is_a_status_streaming_or_not(
    error: Exception, status: int, stream: bool
) -> None:
    backend = ScriptedBackend(lambda request: [error])
    async with Client(backend) as client:
        response = await client.complete(stream=stream)
    error_of(response, status)
    assert ("retry-after" in response.headers) == (status in (429, 503))
    assert "secret" not in response.text
    assert backend.num_open == 0


@pytest.mark.parametrize(
    ("known_s", "told_s"), [(None, 1), (-3.0, 1), (0.0, 1), (0.2, 1), (1.0, 1), (1.1, 2), (59.5, 60), (1e9, 60)]
)
@pytest.mark.parametrize(("kind", "status"), [(QueueFull, 429), (NotReady, 503)])
async def test_who_is_refused_for_now_is_told_in_whole_seconds_when_to_come_again(
    kind: type[TryLater], status: int, known_s: float | None, told_s: int
) -> None:
    backend = ScriptedBackend(lambda request: [kind("9 requests are queued", known_s)])
    async with Client(backend) as client:
        response = await client.complete()
    assert response.headers["retry-after"] == str(told_s)
    assert error_of(response, status)["message"] == f"9 requests are queued; try again in {told_s} s"


def broken_off(request: GenerateRequest) -> list[Any]:
    return [*runs_of(request, [70, 71], [72])[:1], RuntimeError("secret prompt")]


async def test_an_error_in_mid_stream_is_an_error_event(caplog: pytest.LogCaptureFixture) -> None:
    backend = ScriptedBackend(broken_off)
    async with Client(backend) as client:
        with caplog.at_level(logging.ERROR):
            response = await client.chat(stream=True)
    *_, chunk, error = events(response)
    assert chunk["choices"][0]["delta"]["content"]
    assert error["error"]["type"] == "server_error"
    assert response.headers["x-request-id"] in error["error"]["message"]
    assert response.headers["x-request-id"] in caplog.text
    assert "secret" not in response.text + caplog.text
    assert backend.num_open == 0


@pytest.mark.parametrize("reason", [FinishReason.ABORT, FinishReason.ERROR, FinishReason.UNDEFINED])
async def test_an_answer_that_the_engine_gave_up_is_an_error_and_no_answer(reason: FinishReason) -> None:
    backend = ScriptedBackend(lambda request: runs_of(request, [70], [], reason=reason))
    async with Client(backend) as client:
        error_of(await client.complete(), 503 if reason is FinishReason.ABORT else 500)
        assert "error" in events(await client.complete(stream=True))[-1]


async def test_a_model_without_a_next_token_is_named_and_the_text_so_far_is_kept() -> None:
    backend = ScriptedBackend(lambda request: runs_of(request, [70], [], reason=FinishReason.UNDEFINED))
    async with Client(backend) as client:
        whole, (*_, chunk, event) = await client.complete(), events(await client.complete(stream=True))
    for error in (error_of(whole, 500), event["error"]):
        assert error["code"] == "model_fault"
        assert "no next token" in error["message"]
    assert chunk["choices"][0]["text"]


async def test_one_failing_prompt_ends_the_others() -> None:
    hold = asyncio.Event()

    def script(request: GenerateRequest) -> list[Any]:
        return [QueueFull("full")] if request.request_id.endswith("-1") else [hold]

    backend = ScriptedBackend(script)
    async with Client(backend) as client:
        error_of(await client.complete(prompt=["a", "b", "c"]), 429)
    assert backend.num_open == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_with_many_prompts_asks_for_no_more_at_once_than_a_replica_decodes(stream: bool) -> None:
    backend = ScriptedBackend(lambda request: [*says(TEXT)(request)])
    backend.cards = (replace(card(), max_batch=2),)
    most = 0

    def script(request: GenerateRequest) -> Any:
        nonlocal most
        most = max(most, backend.num_open)
        return says(TEXT)(request)

    backend.script = script
    async with Client(backend) as client:
        response = await client.complete(prompt=["a"] * 8, stream=stream)
    assert response.status_code == 200
    assert (len(backend.requests), most) == (8, 2)


async def test_pages_of_the_sites_that_the_config_names_may_call() -> None:
    site, asked = "https://chat.example.org", {"access-control-request-method": "POST"}
    async with Client(ScriptedBackend(says(TEXT)), cors_origins=(site,)) as client:
        allowed = await client.options("/v1/chat/completions", headers=asked | {"origin": site})
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == site
        refused = await client.options("/v1/completions", headers=asked | {"origin": "https://other.example.org"})
        assert "access-control-allow-origin" not in refused.headers
        failed = await client.post("/v1/completions", json={}, headers={"origin": site})
        assert failed.headers["access-control-allow-origin"] == site
        error_of(failed, 400)
    async with Client(ScriptedBackend(says(TEXT))) as client:
        response = await client.options("/v1/completions", headers=asked | {"origin": site})
        assert "access-control-allow-origin" not in response.headers


class Connection:
    """One HTTP exchange by hand, for a client that leaves when told to."""

    def __init__(self, body: dict[str, Any]) -> None:
        self._body = json.dumps(body).encode()
        self.leave = asyncio.Event()
        self.sent: list[Any] = []
        self._read = False

    async def run(self, app: Any, path: str) -> None:
        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
        await app(scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        if not self._read:
            self._read = True
            return {"type": "http.request", "body": self._body}
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("num_runs", [0, 1])
async def test_a_client_that_leaves_cancels_its_requests(stream: bool, num_runs: int) -> None:
    hold = asyncio.Event()
    backend = ScriptedBackend(lambda request: [*runs_of(request, [70], [71])[:num_runs], hold])
    connection = Connection(COMPLETION | {"stream": stream, "prompt": ["a", "b"]})
    task = asyncio.create_task(connection.run(create_app(backend), "/v1/completions"))
    while backend.num_open < 2:
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    connection.leave.set()
    await asyncio.wait_for(task, 5)
    assert backend.num_open == 0


async def test_cancelling_the_handler_cancels_the_request() -> None:
    backend = ScriptedBackend(lambda request: [*runs_of(request, [70], [71])[:1], asyncio.Event()])
    connection = Connection(COMPLETION | {"stream": True})
    task = asyncio.create_task(connection.run(create_app(backend), "/v1/completions"))
    while len(connection.sent) < 2:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert backend.num_open == 0
