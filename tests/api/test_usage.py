"""What an answer says of its prompt: how much of it the target did not have to read, over HTTP and gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from protocol.pb import inference_pb2 as pb
from protocol.pb import inference_pb2_grpc as pb_grpc
from tests.api.api_client import Client, events
from tests.api.api_twins import EngineBackend, card, make_engine, tiny_tokenizer
from tests.api.rpc_server import rpc_server
from tests.api.scrape import scrape_of

PROMPT = "def add(a, b):\n    return a + b\n" * 3
PAGE = 16


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[EngineBackend]:
    """A new one, which has read nothing yet."""
    engine = make_engine(tmp_path)
    yield EngineBackend(engine, card(max_model_len=engine.max_length))
    engine.stop()


@pytest.fixture
async def client(backend: EngineBackend) -> AsyncIterator[Client]:
    async with Client(backend) as client:
        yield client


def asked(**changes: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": PROMPT, "max_tokens": 4, "temperature": 0, "ignore_eos": True} | changes


def full_pages(num_tokens: int) -> int:
    """Tokens in the pages of a prompt that it fills, without the token that is always run."""
    return (num_tokens - 1) // PAGE * PAGE


async def test_a_completion_tells_what_was_kept_of_its_prompt(client: Client) -> None:
    num_prompt = len(tiny_tokenizer().encode(PROMPT))
    assert full_pages(num_prompt) > 0
    first, again = [(await client.post("/v1/completions", json=asked())).json()["usage"] for _ in range(2)]
    assert first["prompt_tokens_details"] == {"cached_tokens": 0}
    assert again["prompt_tokens_details"] == {"cached_tokens": full_pages(num_prompt)}
    assert again["prompt_tokens"] == num_prompt, "cached ones are tokens of the prompt"


async def test_a_stream_tells_the_same_also_where_a_stop_string_ends_it(client: Client) -> None:
    num_prompt = len(tiny_tokenizer().encode(PROMPT))
    text = (await client.post("/v1/completions", json=asked(max_tokens=24))).json()["choices"][0]["text"]
    body = asked(max_tokens=24, stream=True, stream_options={"include_usage": True}, stop=text[8:12])
    *_, last = events(await client.post("/v1/completions", json=body))
    assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": full_pages(num_prompt)}


async def test_the_choices_of_a_prompt_count_what_the_first_of_them_had_to_read(client: Client) -> None:
    new = (await client.post("/v1/completions", json=asked(n=3, temperature=1))).json()["usage"]
    assert new["prompt_tokens_details"] == {"cached_tokens": 0}
    kept = (await client.post("/v1/completions", json=asked(n=3, prompt=[PROMPT, PROMPT], temperature=1))).json()
    num_prompt = len(tiny_tokenizer().encode(PROMPT))
    assert kept["usage"]["prompt_tokens_details"] == {"cached_tokens": 2 * full_pages(num_prompt)}


async def test_chats_and_responses_tell_it_in_their_own_shapes(client: Client) -> None:
    messages, settings = [{"role": "user", "content": PROMPT}], {"model": "tiny", "temperature": 0}
    body = settings | {"messages": messages, "max_tokens": 2}
    used = [(await client.post("/v1/chat/completions", json=body)).json()["usage"] for _ in range(2)]
    kept = full_pages(used[0]["prompt_tokens"])
    assert [each["prompt_tokens_details"]["cached_tokens"] for each in used] == [0, kept]
    response = await client.post("/v1/responses", json=settings | {"input": PROMPT, "max_output_tokens": 2})
    assert response.json()["usage"]["input_tokens_details"]["cached_tokens"] == kept


async def test_grpc_tells_it_with_the_last_message(backend: EngineBackend) -> None:
    async with rpc_server(backend) as address, grpc.aio.insecure_channel(address) as channel:
        stub: Any = pb_grpc.InferenceStub(channel)  # type: ignore[no-untyped-call]
        told = []
        for _ in range(2):
            message = pb.GenerateRequest(model="tiny", text=PROMPT, max_tokens=4, temperature=0)
            *_, last = [response async for response in stub.Generate(message)]
            told.append(last.usage)
    assert [usage.cached_tokens for usage in told] == [0, full_pages(told[0].prompt_tokens)]


async def test_metrics_count_hits_and_waits_under_vllms_names_too(client: Client) -> None:
    num_prompt = len(tiny_tokenizer().encode(PROMPT))
    for _ in range(2):
        await client.post("/v1/completions", json=asked())
    found = scrape_of(await client.get("/metrics"))
    for prefix in ("draftpool_", "vllm:"):
        assert found.value(f"{prefix}prefix_cache_queries_total") == 2 * num_prompt
        assert found.value(f"{prefix}prefix_cache_hits_total") == full_pages(num_prompt)
        assert found.value(f"{prefix}request_queue_time_seconds_count") == 2
        assert found.value(f"{prefix}request_queue_time_seconds_bucket", le="+Inf") == 2
        assert 0 <= found.value(f"{prefix}request_queue_time_seconds_sum") < 60
