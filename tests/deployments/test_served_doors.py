"""The demo's code models behind both doors: OpenAI's own client in all its ways, and the same tokens over gRPC."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
import ray
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from bench.workload import HELD_OUT
from cli.demo_family import CODE
from deployments.config import HttpConfig, load_config
from deployments.config_access import AccessConfig
from deployments.config_telemetry import TelemetryConfig
from protocol.pb import inference_pb2 as pb
from protocol.pb import inference_pb2_grpc as pb_grpc
from tests.api.test_spans import PARENT, TRACE, TRACEPARENT, Collector, collecting
from tests.deployments.harness import wait_until
from tests.deployments.head import Head
from tests.deployments.served import Served, deployed

pytestmark = [pytest.mark.ray, pytest.mark.slow]

MODEL = "small"
NUM_PROMPTS, MAX_TOKENS = 100, 24
MESSAGES: Any = [{"role": "user", "content": "def main():"}]
ASKED: dict[str, Any] = {"model": MODEL, "max_tokens": 16, "temperature": 0.8, "seed": 5}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as made:
        yield made


@pytest.fixture(scope="module")
def demo(ray_head: Head, collector: Collector) -> Iterator[Served]:
    config = load_config(CODE)
    small = tuple(target for target in config.targets if target.name == MODEL)
    http, access = HttpConfig(port=ray_head.http_port), AccessConfig(open=True)
    telemetry = TelemetryConfig(logs="json", otlp_endpoint=collector.url)
    config = config.model_copy(update={"targets": small, "http": http, "access": access, "telemetry": telemetry})
    with deployed(config, ray_head) as app:
        yield app


@pytest.fixture(scope="module")
def stub(demo: Served, ray_head: Head) -> Iterator[Any]:
    with grpc.insecure_channel(f"127.0.0.1:{ray_head.grpc_port}") as channel:
        yield pb_grpc.InferenceStub(channel)  # type: ignore[no-untyped-call]


def prompts() -> list[str]:
    rows = [json.loads(line) for line in HELD_OUT.read_text(encoding="utf-8").splitlines()]
    texts = [row["prompt"] for row in rows]
    return [texts[number % len(texts)][: 40 + 5 * number] for number in range(NUM_PROMPTS)]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_http_and_grpc_give_the_same_tokens(demo: Served, stub: Any, temperature: float) -> None:
    def over_http(number: int, prompt: str) -> list[int]:
        extra = {"return_token_ids": True}
        answer = demo.client.completions.create(
            model=MODEL, prompt=prompt, max_tokens=MAX_TOKENS, temperature=temperature, seed=number, extra_body=extra
        )
        ids: list[int] = answer.choices[0].model_dump()["token_ids"]
        return ids

    def over_grpc(number: int, prompt: str) -> list[int]:
        settings: dict[str, Any] = {"max_tokens": MAX_TOKENS, "temperature": temperature, "seed": number}
        message = pb.GenerateRequest(model=MODEL, text=prompt, **settings)
        metadata = [("application", "draftpool")]
        return [token for part in stub.Generate(message, metadata=metadata) for token in part.token_ids]

    with ThreadPoolExecutor(4) as threads:
        first = list(threads.map(over_http, range(NUM_PROMPTS), prompts()))
        second = list(threads.map(over_grpc, range(NUM_PROMPTS), prompts()))
    assert [len(ids) > 0 for ids in first] == [True] * NUM_PROMPTS
    assert first == second


def test_openais_client_gets_the_same_chat_whole_streamed_and_raw(demo: Served) -> None:
    chats = demo.client.chat.completions
    whole = chats.create(messages=MESSAGES, **ASKED)
    text = whole.choices[0].message.content
    pieces = chats.create(messages=MESSAGES, stream=True, **ASKED)
    assert "".join(part.choices[0].delta.content or "" for part in pieces) == text
    raw = chats.with_raw_response.create(messages=MESSAGES, extra_headers={"x-request-id": "mine-7"}, **ASKED)
    assert raw.headers["x-request-id"] == "mine-7"
    assert raw.parse().choices[0].message.content == text
    with chats.with_streaming_response.create(messages=MESSAGES, **ASKED) as streaming:
        assert json.loads(streaming.read())["choices"][0]["message"]["content"] == text
    assert whole.usage is not None
    assert whole.usage.prompt_tokens_details is not None


def test_openais_client_gets_the_same_response_whole_and_streamed(demo: Served) -> None:
    asked = {"model": MODEL, "input": "def main():", "max_output_tokens": 16, "temperature": 0.8}
    asked["extra_body"] = {"seed": 5}
    whole = demo.client.responses.create(**asked)  # type: ignore[call-overload]
    events = list(demo.client.responses.create(stream=True, **asked))  # type: ignore[call-overload]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert events[-1].response.output_text == whole.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))


async def test_openais_async_client_does_too(demo: Served) -> None:
    async with openai.AsyncOpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0) as client:
        whole = await client.chat.completions.create(messages=MESSAGES, **ASKED)
        stream = await client.chat.completions.create(messages=MESSAGES, stream=True, **ASKED)
        text = "".join([part.choices[0].delta.content or "" async for part in stream])
        assert text == whole.choices[0].message.content
        assert [model.id async for model in client.models.list()] == [MODEL]
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(messages=MESSAGES, **ASKED | {"model": "huge"})


@pytest.mark.parametrize("bad", ["x" * 129, "two words"])
def test_an_id_that_is_none_does_not_come_back(demo: Served, bad: str) -> None:
    raw = demo.client.models.with_raw_response.list(extra_headers={"x-request-id": bad})
    assert raw.headers["x-request-id"] != bad
    assert len(raw.headers["x-request-id"]) <= 128


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"model": "huge"}, grpc.StatusCode.NOT_FOUND),
        ({"temperature": -1.0}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"max_tokens": 1 << 20}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_what_grpc_refuses_has_its_status_and_no_traceback(
    stub: Any, changes: dict[str, Any], code: grpc.StatusCode
) -> None:
    message = pb.GenerateRequest(**{"model": MODEL, "text": "def f("} | changes)
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Generate(message, metadata=[("application", "draftpool")]))
    refused: Any = caught.value
    assert refused.code() is code
    assert not [word for word in ("Traceback", ".py", "Error") if word in refused.details()]


def test_a_deadline_over_grpc_ends_the_call_and_the_work(demo: Served, stub: Any) -> None:
    message = pb.GenerateRequest(model=MODEL, text="def f(", max_tokens=1500, ignore_eos=True)
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Generate(message, metadata=[("application", "draftpool")], timeout=0.3))
    refused: Any = caught.value
    assert refused.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    demo.wait_until_idle()


def test_nobody_is_told_of_the_services_unless_the_config_says_so(ray_head: Head, demo: Served) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{ray_head.grpc_port}") as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        with pytest.raises(grpc.RpcError) as caught:
            database.get_services()
    refused: Any = caught.value
    assert refused.code() is not grpc.StatusCode.OK


def test_the_ingress_and_the_target_send_spans_of_the_callers_trace(demo: Served, collector: Collector) -> None:
    headers = {"traceparent": TRACEPARENT, "x-request-id": "traced-1"}
    answer = demo.client.chat.completions.create(messages=MESSAGES, extra_headers=headers, **ASKED)

    def of_trace(name: str) -> list[Any]:
        return [span for span in collector.spans if span.name == name and span.trace_id.hex() == TRACE]

    wait_until(lambda: of_trace(f"chat {MODEL}") and of_trace(f"target {MODEL}"))
    (door,), (target,) = of_trace(f"chat {MODEL}"), of_trace(f"target {MODEL}")
    assert (door.parent_span_id.hex(), target.parent_span_id) == (PARENT, door.span_id)
    assert [event.name for event in target.events] == ["admitted", "first token"]
    record = next(record for record in records() if answer.id in record["message"])
    assert record["request_id"] == "traced-1"


def records() -> Iterator[dict[str, Any]]:
    """What our loggers wrote in the processes of this cluster."""
    for file in Path(ray._private.worker._global_node.get_logs_dir_path()).glob("worker-*.err"):
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith('{"time": '):
                yield json.loads(line)


def test_counts_of_the_prefix_cache_are_in_metrics(demo: Served) -> None:
    prompt = Path(__file__).read_text(encoding="utf-8")[:600]
    used = [demo.client.completions.create(model=MODEL, prompt=prompt, max_tokens=2).usage for _ in range(2)]
    assert used[1] is not None
    assert used[1].prompt_tokens_details is not None
    assert used[1].prompt_tokens_details.cached_tokens
    text = demo.client._client.get(f"{demo.url}/metrics").text
    assert "vllm:prefix_cache_hits_total" in text
    assert "vllm:request_queue_time_seconds_bucket" in text
