"""What third-party load testers send, as recorded from them (aiperf 0.13, guidellm 0.8.1, Ray 2.60's own, vLLM's
bench), and what they read from the answer: accepted, counted as they count, and nothing of it ignored.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from api.http import create_app
from protocol.request import FinishReason, GenerateRequest, TokenRun
from tests.api.api_twins import ScriptedBackend, card, runs_of, tiny_tokenizer
from tests.api.scrape import scrape_of
from tests.api.test_http import events

USAGE, BOTH_USAGES = {"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}
TEXT = [{"role": "user", "content": "That he so slightly valued"}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "1 1 m0 Prove adult science people."}]}]
SESSION = [{"role": "system", "content": "k na 2"}, {"role": "user", "content": "J&"}]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
IDS = {"x-request-id": "1515ef2c-f340", "x-correlation-id": "f17d31d9", "x-session-affinity": "f17d31d9"}
LENGTH = 16

BODIES: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    "aiperf chat": (
        CHAT,
        IDS,
        {"messages": TEXT, "stream": True, "max_completion_tokens": 16, "stream_options": USAGE},
    ),
    "aiperf chat, whole": (CHAT, IDS, {"messages": TEXT, "stream": False, "max_completion_tokens": 16}),
    "aiperf completions": (
        COMPLETIONS,
        IDS,
        {"prompt": "That he", "stream": True, "max_tokens": 16, "stream_options": USAGE},
    ),
    "aiperf, extra inputs": (
        CHAT,
        IDS,
        {"messages": TEXT, "stream": True, "max_tokens": 16, "ignore_eos": True, "stream_options": BOTH_USAGES},
    ),
    "guidellm chat": (
        CHAT,
        {},
        {
            "stream": True,
            "stream_options": BOTH_USAGES,
            "max_completion_tokens": 16,
            "stop": None,
            "ignore_eos": True,
            "messages": PARTS,
        },
    ),
    "guidellm completions": (
        COMPLETIONS,
        {},
        {
            "stream": True,
            "stream_options": BOTH_USAGES,
            "max_tokens": 16,
            "stop": None,
            "ignore_eos": True,
            "prompt": "1 1 m0 Prove",
        },
    ),
    "ray": (
        CHAT,
        {"x-session-id": "session-000005"},
        {"messages": SESSION, "max_tokens": 16, "stream": True, "stream_options": USAGE, "temperature": 0.0},
    ),
    "vllm bench, completions": (
        COMPLETIONS,
        {"x-request-id": "bench-0"},
        {
            "prompt": "J&",
            "repetition_penalty": 1.0,
            "max_tokens": 16,
            "logprobs": None,
            "stream": True,
            "stream_options": USAGE,
            "ignore_eos": True,
            "temperature": 0.0,
        },
    ),
    "vllm bench, chat": (
        CHAT,
        {},
        {
            "messages": PARTS,
            "max_completion_tokens": 16,
            "stream": True,
            "stream_options": USAGE,
            "ignore_eos": True,
            "temperature": 0.0,
        },
    ),
}


def as_asked(request: GenerateRequest) -> list[TokenRun]:
    """Three tokens a round, up to the length that was asked for."""
    ids = (tiny_tokenizer().encode("import os, sys") * request.stop.max_tokens)[: request.stop.max_tokens]
    rounds = [ids[at : at + 3] for at in range(0, len(ids), 3)]
    return list(runs_of(request, *rounds, reason=FinishReason.LENGTH))


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend(as_asked, cards=(card(max_model_len=512),))


@pytest.fixture
async def client(backend: ScriptedBackend) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(backend), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as made:
        yield made


@pytest.mark.parametrize("name", BODIES)
async def test_what_load_testers_send_is_accepted_and_counted(
    client: httpx.AsyncClient, backend: ScriptedBackend, name: str
) -> None:
    path, headers, body = BODIES[name]
    response = await client.post(path, json={"model": "tiny"} | body, headers=headers)
    assert response.status_code == 200, response.text
    if "x-request-id" in headers:
        assert response.headers["x-request-id"] == headers["x-request-id"]
    (request,) = backend.requests
    assert request.stop.max_tokens == LENGTH
    assert bool(request.stop.stop_token_ids) is not bool(body.get("ignore_eos"))
    assert request.sampling.temperature == body.get("temperature", 1.0)
    usage = events(response)[-1]["usage"] if body["stream"] else response.json()["usage"]
    assert usage["completion_tokens"] == LENGTH
    assert usage["prompt_tokens"] == len(request.prompt_ids)


@pytest.mark.parametrize("name", [name for name, (_, _, body) in BODIES.items() if body["stream"]])
async def test_streams_are_what_load_testers_read(client: httpx.AsyncClient, name: str) -> None:
    """The usage stands in a last chunk without choices; before it each token chunk has text, so TTFT is the first's.

    A chat opens with a chunk that has a role and no text, by which they know that it is no token.
    """
    path, headers, body = BODIES[name]
    *chunks, last = events(await client.post(path, json={"model": "tiny"} | body, headers=headers))
    assert last["choices"] == []
    if path == CHAT:
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert not any("role" in chunk["choices"][0]["delta"] for chunk in chunks[1:])
    texts = [chunk["choices"][0].get("text") or chunk["choices"][0].get("delta", {}).get("content") for chunk in chunks]
    assert all(texts[path == CHAT :])
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    if body["stream_options"] is BOTH_USAGES:
        counts = [chunk["usage"]["completion_tokens"] for chunk in chunks if chunk.get("usage")]
        assert sorted(set(counts)) == counts
        assert counts[-1] == LENGTH


async def test_guidellm_finds_the_server_healthy_and_its_model(client: httpx.AsyncClient) -> None:
    assert (await client.get("/health")).status_code == 200
    assert [model["id"] for model in (await client.get("/v1/models")).json()["data"]] == ["tiny"]


async def test_aiperf_reads_the_metrics_while_it_runs_with_prometheus_own_parser(client: httpx.AsyncClient) -> None:
    """It asks with HEAD first, by which it only learns that the server is there, then three times a second."""
    path, headers, body = BODIES["aiperf chat"]
    assert (await client.head("/metrics")).status_code in (200, 405)
    assert scrape_of(await client.get("/metrics")).value("vllm:generation_tokens_total") == 0
    await client.post(path, json={"model": "tiny"} | body, headers=headers)
    found = scrape_of(await client.get("/metrics"))
    assert found.value("vllm:generation_tokens_total", model_name="tiny") == LENGTH
    assert found.value("vllm:time_to_first_token_seconds_count", model_name="tiny") == 1


async def test_aiperf_finds_the_counts_of_speculation_once_in_a_stream(client: httpx.AsyncClient) -> None:
    """Of two it would take neither; it prints its section of speculation from them, not from /metrics."""
    path, headers, body = BODIES["aiperf chat"]
    chunks = events(await client.post(path, json={"model": "tiny"} | body, headers=headers))
    told = [chunk["metrics"]["speculative_decoding"] for chunk in chunks if chunk.get("metrics")]
    assert len(told) == 1
    assert {"acceptance_histogram", "num_spec_steps"} <= told[0].keys(), "by these it knows whose counts they are"
    assert chunks[-1]["metrics"]["speculative_decoding"] == told[0]


async def test_vllms_bench_finds_its_prompts_as_long_here_as_it_made_them(client: httpx.AsyncClient) -> None:
    """Where they differ it cuts them by our tokens and takes the text of those."""
    text = TEXT[0]["content"]
    asked = {"model": "tiny", "prompt": text, "add_special_tokens": False}
    ids = (await client.post("/tokenize", json=asked)).json()["tokens"]
    assert ids == tiny_tokenizer().encode(text, add_special_tokens=False)
    cut = (await client.post("/detokenize", json={"model": "tiny", "tokens": ids[:5]})).json()["prompt"]
    assert cut
    assert text.startswith(cut)
