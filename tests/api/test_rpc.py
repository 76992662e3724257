"""The RPCs beside Generate, over a socket: chats, an end by id, what a target is and holds, and health."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protocol.errors import NotReady, QueueFull
from protocol.pb import inference_pb2 as pb
from protocol.pb import inference_pb2_grpc as pb_grpc
from tests.api.api_client import TEXT, Client, error_of, events
from tests.api.api_twins import ScriptedBackend, card, runs_of, tiny_tokenizer
from tests.api.rpc_server import rpc_server

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
async def channel(backend: ScriptedBackend) -> AsyncIterator[grpc.aio.Channel]:
    async with rpc_server(backend) as address, grpc.aio.insecure_channel(address) as channel:
        yield channel
    assert (backend.num_open, len(backend.open)) == (0, 0)


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> Any:
    return pb_grpc.InferenceStub(channel)  # type: ignore[no-untyped-call]


def chat(content: str = "grüße", **options: Any) -> pb.ChatRequest:
    messages = [pb.ChatMessage(role="user", content=content)]
    return pb.ChatRequest(messages=messages, options=pb.GenerateRequest(model="tiny", **options))


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [part async for part in call] if hasattr(call, "__aiter__") else await call
    assert "Traceback" not in (caught.value.details() or "")
    return caught.value


async def wait_until_open(backend: ScriptedBackend, count: int) -> None:
    async with asyncio.timeout(5):
        while backend.num_open != count:
            await asyncio.sleep(0.005)


async def test_a_chat_gets_the_tokens_that_it_gets_over_http(stub: Any, backend: ScriptedBackend) -> None:
    parts = [part async for part in stub.Chat(chat(seed=5, max_tokens=40))]
    async with Client(backend) as client:
        body = (await client.chat(seed=5, max_tokens=40, return_token_ids=True)).json()
    assert [token for part in parts for token in part.token_ids] == body["choices"][0]["token_ids"]
    assert "".join(part.text for part in parts) == body["choices"][0]["message"]["content"] == TEXT
    assert parts[-1].usage.prompt_tokens == body["usage"]["prompt_tokens"]
    over_grpc, over_http = backend.requests
    assert replace(over_grpc, request_id=over_http.request_id) == over_http


@pytest.mark.parametrize(
    ("message", "named"),
    [
        (pb.ChatRequest(options=pb.GenerateRequest(model="tiny")), "messages"),
        (
            pb.ChatRequest(
                messages=[pb.ChatMessage(role="king", content="a")], options=pb.GenerateRequest(model="tiny")
            ),
            "role",
        ),
        (chat(text="a"), "options.text is a prompt"),
        (chat(top_p=0.0), "top_p"),
        (chat("word " * 300), "shorten"),
    ],
    ids=["no messages", "a role that is none", "a prompt too", "an option out of range", "too long"],
)
async def test_a_chat_that_makes_no_sense_is_an_invalid_argument_that_says_why(
    stub: Any, message: pb.ChatRequest, named: str
) -> None:
    error = await refusal(stub.Chat(message))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert named in (error.details() or "")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_abort_ends_a_call_over_http_and_all_its_choices(stream: bool) -> None:
    backend = ScriptedBackend(lambda request: [*runs_of(request, [70], [71])[:1], asyncio.Event()])
    async with Client(backend) as client, rpc_server(backend) as address, grpc.aio.insecure_channel(address) as channel:
        stub: Any = pb_grpc.InferenceStub(channel)  # type: ignore[no-untyped-call]
        running = asyncio.create_task(client.complete(prompt=["a", "b"], stream=stream))
        await wait_until_open(backend, 2)
        call_id = backend.requests[0].request_id.rpartition("-")[0]
        for asked, was_open in (("cmpl", False), (f"{call_id}-7", False), (call_id, True), (call_id, False)):
            assert (await stub.Abort(pb.AbortRequest(request_id=asked))).was_open is was_open
        response = await running
    fields = events(response)[-1]["error"] if stream else error_of(response, 499)
    assert fields["code"] == "request_aborted"
    assert (backend.num_open, len(backend.open)) == (0, 0)


async def test_an_abort_ends_a_call_with_cancelled(stub: Any, backend: ScriptedBackend) -> None:
    backend.script = lambda request: [*runs_of(request, [70], [71])[:1], asyncio.Event()]
    running, other = (stub.Generate(pb.GenerateRequest(model="tiny", text="a")) for _ in range(2))
    first, _ = await running.read(), await other.read()
    assert (await stub.Abort(pb.AbortRequest(request_id=first.request_id))).was_open
    assert (await refusal(running.read())).code() is grpc.StatusCode.CANCELLED
    await wait_until_open(backend, 1)  # the other goes on
    other.cancel()
    await wait_until_open(backend, 0)


async def test_an_abort_without_an_id_is_refused(stub: Any) -> None:
    assert (await refusal(stub.Abort(pb.AbortRequest()))).code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_deadline_ends_a_call_and_its_request(stub: Any, backend: ScriptedBackend) -> None:
    backend.script = lambda request: [*runs_of(request, [70], [71])[:1], asyncio.Event()]
    error = await refusal(stub.Generate(pb.GenerateRequest(model="tiny", text="a"), timeout=0.2))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(backend.requests) == 1, "the deadline came while the target answered"
    await wait_until_open(backend, 0)


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (QueueFull("full"), grpc.StatusCode.RESOURCE_EXHAUSTED, "full; try again in 1 s"),
        (QueueFull("full", 6.2), grpc.StatusCode.RESOURCE_EXHAUSTED, "full; try again in 7 s"),
        (NotReady("loading"), grpc.StatusCode.UNAVAILABLE, "loading; try again in 1 s"),
        (RuntimeError("secret prompt"), grpc.StatusCode.INTERNAL, None),
    ],
)
async def test_a_call_that_may_come_again_is_told_when(
    stub: Any, backend: ScriptedBackend, error: Exception, code: grpc.StatusCode, told: str | None
) -> None:
    backend.script = lambda request: [error]
    for call in (stub.Generate(pb.GenerateRequest(model="tiny", text="a")), stub.Chat(chat())):
        caught = await refusal(call)
        assert caught.code() is code
        assert str(caught.details()).endswith(told or "")
        assert ("try again" in str(caught.details())) is (told is not None)
        assert "secret" not in (caught.details() or "")


async def test_a_model_tells_what_a_caller_needs_to_know(stub: Any, backend: ScriptedBackend) -> None:
    plain, drafted = card("plain", chat_template=None), replace(card("drafted"), exits=(2, 4), max_draft_length=6)
    backend.cards = (plain, drafted)
    told = [await stub.GetModelInfo(pb.GetModelInfoRequest(model=name)) for name in ("plain", "drafted")]
    assert [(each.id, list(each.exits), each.has_chat_template) for each in told] == [
        ("plain", [], False),
        ("drafted", [2, 4], True),
    ]
    assert [each.HasField("max_draft_length") for each in told] == [False, True]
    tokenizer = tiny_tokenizer()
    assert (told[0].max_model_len, told[0].vocab_size, told[0].max_batch) == (64, len(tokenizer), 4)
    assert list(told[0].eos_token_ids) == [tokenizer.eos_token_id]
    backend.away = ("plain",)
    for name, code in (("huge", grpc.StatusCode.NOT_FOUND), ("plain", grpc.StatusCode.UNAVAILABLE)):
        assert (await refusal(stub.GetModelInfo(pb.GetModelInfoRequest(model=name)))).code() is code


async def test_loads_are_those_of_the_replicas_of_all_models_or_of_one(
    stub: Any, backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = {"num_running": 3, "num_waiting": 2, "num_free_pages": 5, "num_pages": 9, "num_steps": 77}
    drafting = {"num_sequences": 4, "num_free_pages": 6, "num_pages": 8, "num_busy": 1}

    async def stats() -> dict[str, Any]:
        return {"targets": {"a": [replica, replica | {"num_running": 0}], "b": []}, "pool": [drafting]}

    backend.cards = (card("a"), card("b"))
    monkeypatch.setattr(backend, "stats", stats)
    told = await stub.GetLoads(pb.GetLoadsRequest())
    assert [(model.model, len(model.replicas)) for model in told.models] == [("a", 2), ("b", 0)]
    busy, idle = told.models[0].replicas
    assert (busy.num_running, busy.num_waiting, busy.num_free_pages, busy.num_pages) == (3, 2, 5, 9)
    assert (idle.num_running, idle.HasField("num_running")) == (0, True)
    (pool,) = told.pool
    assert (pool.num_running, pool.HasField("num_waiting"), pool.num_free_pages) == (4, False, 6)
    only = await stub.GetLoads(pb.GetLoadsRequest(model="b"))
    assert [model.model for model in only.models] == ["b"]
    error = await refusal(stub.GetLoads(pb.GetLoadsRequest(model="huge")))
    assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_health_is_that_of_all_models_or_of_one(channel: grpc.aio.Channel, backend: ScriptedBackend) -> None:
    health: Any = health_pb2_grpc.HealthStub(channel)
    backend.cards, backend.away = (card("up"), card("down")), ("down",)

    async def status(service: str) -> int:
        answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
        return int(answer.status)

    for service, expected in (("", NOT_SERVING), ("up", SERVING), ("down", NOT_SERVING)):
        assert await status(service) == expected
    backend.away = ()
    assert [await status(service) for service in ("", "draftpool.v1.Inference", "down")] == [SERVING] * 3
    told = (await health.List(health_pb2.HealthListRequest())).statuses
    assert {service: told[service].status for service in told} == dict.fromkeys(
        ("", "draftpool.v1.Inference", "up", "down"), SERVING
    )
    error = await refusal(health.Check(health_pb2.HealthCheckRequest(service="huge")))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert (await refusal(health.Watch(health_pb2.HealthCheckRequest()))).code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_request_that_ends_by_itself_is_forgotten(stub: Any, backend: ScriptedBackend) -> None:
    parts = [part async for part in stub.Generate(pb.GenerateRequest(model="tiny", text="a"))]
    assert not (await stub.Abort(pb.AbortRequest(request_id=parts[0].request_id))).was_open
