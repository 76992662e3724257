"""The HTTP API over a scripted backend: shapes, streams, refusals, and what happens when something breaks."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from deployments.api.http import create_app
from deployments.api.openai import ChatCompletionRequest, CompletionRequest
from deployments.api.screen import DROPPED, ONLY
from protocol.errors import InvalidRequest, NotReady, QueueFull
from protocol.request import FinishReason, GenerateRequest, SequenceStats
from tests.deployments.api_twins import CHAT_TEMPLATE, Script, ScriptedBackend, card, runs_of, says, tiny_tokenizer

TEXT = "grüße 🙂 def add(a, b):\n    return"
COMPLETION = {"model": "tiny", "prompt": "import"}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "grüße"}]}


class Client(httpx.AsyncClient):
    def __init__(self, backend: ScriptedBackend, **options: Any) -> None:
        transport = httpx.ASGITransport(create_app(backend, **options), raise_app_exceptions=False)
        super().__init__(transport=transport, base_url="http://test")

    async def complete(self, **changes: Any) -> httpx.Response:
        return await self.post("/v1/completions", json=COMPLETION | changes)

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


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend(says(TEXT))


@pytest.fixture
async def client(backend: ScriptedBackend) -> AsyncIterator[Client]:
    async with Client(backend) as client:
        yield client
    assert backend.num_open == 0


async def test_a_completion_has_openais_shape(client: Client, backend: ScriptedBackend) -> None:
    body = (await client.complete(seed=7)).json()
    count = len(tiny_tokenizer().encode(TEXT))
    assert body.pop("id").startswith("cmpl-")
    assert isinstance(body.pop("created"), int)
    metrics = body.pop("metrics")["speculative_decoding"]
    assert body == {
        "object": "text_completion",
        "model": "tiny",
        "seed": 7,
        "choices": [{"index": 0, "text": TEXT, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 2, "completion_tokens": count, "total_tokens": count + 2},
    }
    assert metrics["num_draft_tokens"] == 8
    assert metrics["num_accepted_draft_tokens"] == 3
    assert metrics["draft_acceptance_rate"] == 3 / 8
    assert metrics["mean_acceptance_length"] == 1 + 3 / metrics["num_spec_steps"]
    assert backend.requests[0].prompt_ids == tuple(tiny_tokenizer().encode("import"))


async def test_a_chat_completion_has_openais_shape(client: Client, backend: ScriptedBackend) -> None:
    body = (await client.chat()).json()
    assert body["id"].startswith("chatcmpl-")
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": TEXT, "refusal": None}
    assert body["choices"][0]["finish_reason"] == "stop"
    prompt = tiny_tokenizer().decode(backend.requests[0].prompt_ids)
    assert prompt == "<|bos|>user: grüße<|eos|><|bos|>assistant: "


async def test_each_round_is_one_chunk_and_chunks_join_to_the_whole_text(client: Client) -> None:
    chunks = events(await client.complete(stream=True))
    num_rounds = -(-len(tiny_tokenizer().encode(TEXT)) // 3)
    assert len(chunks) == num_rounds
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == TEXT
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (num_rounds - 1) + ["stop"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert not any("usage" in chunk for chunk in chunks)


async def test_a_chat_stream_opens_with_the_role(client: Client) -> None:
    first, *rest = events(await client.chat(stream=True))
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in rest) == TEXT
    assert rest[-1]["choices"][0]["finish_reason"] == "stop"


async def test_usage_comes_in_one_more_chunk_when_asked_for(client: Client) -> None:
    *chunks, last = events(await client.complete(stream=True, stream_options={"include_usage": True}))
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    count = len(tiny_tokenizer().encode(TEXT))
    assert last["usage"] == {"prompt_tokens": 2, "completion_tokens": count, "total_tokens": count + 2}
    assert last["metrics"]["speculative_decoding"]["num_draft_tokens"] == 8


async def test_usage_can_come_with_every_chunk(client: Client) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, _ = events(await client.complete(stream=True, stream_options=options))
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks[:3]] == [3, 6, 9]


async def test_a_stop_string_ends_the_text_before_it_and_cancels_the_rest() -> None:
    tokens = tiny_tokenizer().encode("one two three")
    hold = asyncio.Event()
    backend = ScriptedBackend(lambda request: [*runs_of(request, tokens, tokens)[:1], hold])
    async with Client(backend) as client:
        body = (await client.complete(stop=[" three", " tw"])).json()
    assert body["choices"][0]["text"] == "one"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] < len(tokens)
    assert "metrics" not in body
    assert backend.num_open == 0


async def test_several_prompts_give_several_choices(client: Client, backend: ScriptedBackend) -> None:
    body = (await client.complete(prompt=["a", "b"])).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    assert [choice["text"] for choice in body["choices"]] == [TEXT, TEXT]
    assert body["usage"]["prompt_tokens"] == 2
    assert len({request.request_id for request in backend.requests}) == 2
    chunks = events(await client.complete(prompt=[[5], [6]], stream=True))
    for index in (0, 1):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert "".join(choice["text"] for choice in mine) == TEXT


async def test_token_ids_may_be_the_prompt_and_may_be_returned(client: Client, backend: ScriptedBackend) -> None:
    body = (await client.complete(prompt=[4, 5, 6], return_token_ids=True)).json()
    assert backend.requests[0].prompt_ids == (4, 5, 6)
    assert body["choices"][0]["token_ids"] == tiny_tokenizer().encode(TEXT)


async def test_parameters_reach_the_request(client: Client, backend: ScriptedBackend) -> None:
    await client.complete(
        temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, seed=-1, max_completion_tokens=9, stop_token_ids=[8]
    )
    request = backend.requests[0]
    assert request.sampling.temperature == 0.5
    assert (request.sampling.top_p, request.sampling.top_k, request.sampling.min_p) == (0.9, 5, 0.1)
    assert request.sampling.seed == (1 << 64) - 1
    assert request.stop.max_tokens == 9
    assert request.stop.stop_token_ids == {8, tiny_tokenizer().eos_token_id}


async def test_the_defaults_are_openais(client: Client, backend: ScriptedBackend) -> None:
    await client.complete(ignore_eos=True, top_k=-1)
    await client.chat()
    completion, chat = backend.requests
    assert (completion.sampling.temperature, completion.sampling.top_k, completion.stop.max_tokens) == (1.0, 0, 16)
    assert completion.stop.stop_token_ids == set()
    assert chat.stop.max_tokens == 64 - len(chat.prompt_ids)


async def test_a_seed_that_was_not_given_is_drawn_and_told(client: Client, backend: ScriptedBackend) -> None:
    bodies = [(await client.complete()).json() for _ in range(2)]
    seeds = [request.sampling.seed for request in backend.requests]
    assert [body["seed"] for body in bodies] == seeds
    assert seeds[0] != seeds[1]
    assert events(await client.complete(stream=True))[0]["seed"] == backend.requests[-1].sampling.seed


HARMLESS = {
    "user": "me",
    "metadata": {"a": "b"},
    "store": True,
    "n": 1,
    "best_of": 1,
    "logit_bias": {},
    "frequency_penalty": 0,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
    "logprobs": None,
    "echo": False,
    "suffix": None,
    "stop": None,
    "seed": None,
    "temperature": None,
    "max_tokens": None,
    "min_tokens": 0,
    "stream": None,
    "stream_options": None,
    "skip_special_tokens": True,
}


async def test_harmless_fields_are_accepted(client: Client) -> None:
    assert (await client.complete(**HARMLESS)).status_code == 200
    chat = {"tools": [], "tool_choice": "none", "parallel_tool_calls": True, "response_format": {"type": "text"}}
    assert (await client.chat(**chat, top_logprobs=0, logprobs=False, modalities=["text"])).status_code == 200


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 0}, "logprobs"),
        ({"echo": True}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"frequency_penalty": 0.1}, "frequency_penalty"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"min_tokens": 3}, "min_tokens"),
        ({"temprature": 0}, "temprature"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"what": 1}}, "stream_options"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1 << 40}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"seed": 1 << 64}, "seed"),
        ({"seed": -(1 << 63) - 1}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 64}, "max_tokens"),
        ({"max_tokens": 1 << 70}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"stop": ""}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": "\ud800"}, "stop"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["ok", ""]}, "prompt"),
        ({"prompt": [["a"]]}, "prompt"),
        ({"prompt": {"text": "a"}}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [320]}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": "\ud83d"}, "prompt"),
        ({"prompt": "a b c d " * 40}, "prompt"),
        ({"model": None}, "model"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else value,
)
async def test_a_bad_parameter_is_a_400_that_names_it(
    client: Client, backend: ScriptedBackend, changes: dict[str, Any], param: str
) -> None:
    body = json.dumps(COMPLETION | changes)  # httpx would refuse lone surrogates
    response = await client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    error = error_of(response, 400)
    assert error["param"] == param
    assert param in error["message"]
    assert error["type"] == "invalid_request_error"
    assert backend.requests == []


JUNK: list[Any] = [None, True, False, 0, -1, 1.5, 1 << 65, float("nan"), float("inf"), "", "x", "\ud800", [], [[]], {}]
JUNK += [[None], ["x", 1], [1, [2]], {"type": "text"}, {"\ud800": 1}, [{"role": "user", "content": "x"}], ["\x00"]]


@pytest.mark.parametrize("seed", range(40))
async def test_no_body_whatever_it_holds_is_answered_by_a_5xx_or_a_422(client: Client, seed: int) -> None:
    rng = random.Random(seed)
    fields = [*CompletionRequest.model_fields, *ChatCompletionRequest.model_fields, *ONLY, *DROPPED, "\ud800", "", "zz"]
    headers = {"content-type": "application/json"}
    for path, base in (("/v1/completions", COMPLETION), ("/v1/chat/completions", CHAT)) * 6:
        body = base | {rng.choice(fields): rng.choice(JUNK) for _ in range(rng.randint(1, 3))}
        response = await client.post(path, content=json.dumps(body), headers=headers)
        if response.status_code != 200:
            assert response.status_code in (400, 404), response.text
            assert error_of(response, response.status_code)["message"]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "at least 1 item"),
        (None, "list"),
        ([{"role": "tool", "content": "x"}], "'assistant'"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "'text'"),
        ([{"role": "user", "content": "x", "colour": 1}], "colour"),
        ([{"role": "user", "content": "x", "tool_calls": [{}]}], "tool_calls"),
        ([{"content": "x"}], "role"),
        (["hello"], "messages"),
    ],
    ids=str,
)
async def test_bad_messages_are_a_400(client: Client, messages: Any, words: str) -> None:
    error = error_of(await client.chat(messages=messages), 400)
    assert words in error["message"]


async def test_text_parts_and_echoed_assistant_messages_are_taken(client: Client, backend: ScriptedBackend) -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None, "audio": None, "annotations": []},
        {"role": "user", "content": "d", "name": "me"},
    ]
    assert (await client.chat(messages=messages)).status_code == 200
    prompt = tiny_tokenizer().decode(backend.requests[0].prompt_ids)
    assert "user: ab<|eos|><|bos|>assistant: c<|eos|><|bos|>user: d" in prompt


async def test_chat_without_a_template_is_a_400_that_says_what_to_do() -> None:
    async with Client(ScriptedBackend(says(TEXT), (card(chat_template=None),))) as client:
        error = error_of(await client.chat(), 400)
    assert "no chat template" in error["message"]
    assert "/v1/completions" in error["message"]


async def test_a_template_may_refuse_messages() -> None:
    template = "{{ raise_exception('roles must alternate') }}"
    async with Client(ScriptedBackend(says(TEXT), (card(chat_template=template),))) as client:
        assert "roles must alternate" in error_of(await client.chat(), 400)["message"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe{}", b"[" * 50_000, b'{"model": NaNN}', b"1" * 5_000],
    ids=lambda body: repr(body[:12]),
)
async def test_a_malformed_body_is_a_400(client: Client, body: bytes) -> None:
    for path in ("/v1/completions", "/v1/chat/completions"):
        response = await client.post(path, content=body, headers={"content-type": "application/json"})
        error_of(response, 400)


async def test_a_missing_field_and_a_wrong_content_type_are_400s(client: Client) -> None:
    assert error_of(await client.post("/v1/completions", json={"model": "tiny"}), 400)["param"] == "prompt"
    response = await client.post("/v1/completions", content=json.dumps(COMPLETION), headers={"content-type": "text/x"})
    assert "application/json" in error_of(response, 400)["message"]


async def test_a_body_over_the_limit_is_refused_whether_or_not_it_says_its_size() -> None:
    async def drip() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 100

    async with Client(ScriptedBackend(says(TEXT)), max_body_bytes=1000) as client:
        headers = {"content-type": "application/json"}
        for content in (b" " * 2000, drip()):
            response = await client.post("/v1/completions", content=content, headers=headers)
            assert "1000 bytes" in error_of(response, 400)["message"]


async def test_an_unknown_model_is_a_404(client: Client) -> None:
    for response in (await client.complete(model="huge"), await client.chat(model="huge")):
        error = error_of(response, 404)
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert "tiny" in error["message"]
    assert error_of(await client.get("/v1/models/huge"), 404)["code"] == "model_not_found"


async def test_a_wrong_path_or_method_has_an_error_body(client: Client) -> None:
    assert "/v1/nothing" in error_of(await client.get("/v1/nothing"), 404)["message"]
    assert "it takes POST" in error_of(await client.get("/v1/completions"), 404)["message"]


async def test_models_are_listed_and_found(client: Client) -> None:
    listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert listed["data"][0] == (await client.get("/v1/models/tiny")).json()
    assert listed["data"][0]["max_model_len"] == 64
    assert listed["data"][0]["object"] == "model"


async def test_health_is_503_until_ready(client: Client, backend: ScriptedBackend) -> None:
    backend.is_ready = False
    error_of(await client.get("/health"), 503)
    backend.is_ready = True
    response = await client.get("/health")
    assert (response.status_code, response.content) == (200, b"")


async def test_before_any_model_is_known_a_request_is_a_503(client: Client, backend: ScriptedBackend) -> None:
    backend.away = ("tiny",)
    for response in (await client.complete(), await client.get("/v1/models"), await client.get("/v1/models/tiny")):
        assert error_of(response, 503)["type"] == "service_unavailable"
        assert response.headers["retry-after"] == "1"
    error_of(await client.complete(model="huge"), 404)


async def test_a_target_that_is_away_takes_no_other_one_with_it() -> None:
    backend = ScriptedBackend(says(TEXT), (card("up"), card("down")), is_ready=False, away=("down",))
    async with Client(backend) as client:
        assert (await client.complete(model="up")).status_code == 200
        error_of(await client.complete(model="down"), 503)
        assert [model["id"] for model in (await client.get("/v1/models")).json()["data"]] == ["up"]


async def test_operators_can_read_the_counts_of_every_replica(client: Client) -> None:
    assert (await client.get("/debug/stats")).json() == {"targets": {"tiny": [{"num_running": 0}]}, "pool": []}


async def test_a_default_for_max_tokens_gives_way_to_a_long_prompt_and_an_explicit_one_does_not(
    client: Client, backend: ScriptedBackend
) -> None:
    assert (await client.complete(prompt=[70] * 60)).status_code == 200
    assert backend.requests[0].stop.max_tokens == 4
    assert "ask for 4 at most" in error_of(await client.complete(prompt=[70] * 60, max_tokens=16), 400)["message"]


class Tokenizer:
    """The tiny one, whose every use takes a while of its caller's thread."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.chat_template = CHAT_TEMPLATE
        self.num_uses = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(tiny_tokenizer(), name)

    def encode(self, text: str, **options: Any) -> list[int]:
        self.num_uses += 1
        time.sleep(self._seconds)
        return list(tiny_tokenizer().encode(text, **options))

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        self.num_uses += 1
        time.sleep(self._seconds)
        return str(tiny_tokenizer().apply_chat_template(messages, **options))


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_while_a_prompt_is_tokenized_others_are_answered(path: str) -> None:
    tokenizer: Any = Tokenizer(0.6)
    async with Client(ScriptedBackend(says(TEXT), (replace(card(), tokenizer=tokenizer),))) as client:
        began = time.monotonic()
        asked = asyncio.create_task(client.post(path, json=CHAT if "chat" in path else COMPLETION))
        while not tokenizer.num_uses:
            await asyncio.sleep(0.01)
        assert (await client.get("/health")).status_code == 200
        assert time.monotonic() - began < 0.5
        assert (await asked).status_code == 200


async def test_a_prompt_whose_bytes_cannot_fit_is_refused_before_it_is_tokenized() -> None:
    tokenizer: Any = Tokenizer(0)
    async with Client(ScriptedBackend(says(TEXT), (replace(card(), tokenizer=tokenizer),))) as client:
        text = "x" * (64 * card().longest_token + 1)
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


@pytest.mark.parametrize("reason", [FinishReason.ABORT, FinishReason.ERROR])
async def test_an_answer_that_the_engine_gave_up_is_an_error_and_no_answer(reason: FinishReason) -> None:
    backend = ScriptedBackend(lambda request: runs_of(request, [70], [], reason=reason))
    async with Client(backend) as client:
        error_of(await client.complete(), 503 if reason is FinishReason.ABORT else 500)
        assert "error" in events(await client.complete(stream=True))[-1]


async def test_one_failing_prompt_ends_the_others() -> None:
    hold = asyncio.Event()

    def script(request: GenerateRequest) -> list[Any]:
        return [QueueFull("full")] if request.request_id.endswith("-1") else [hold]

    backend = ScriptedBackend(script)
    async with Client(backend) as client:
        error_of(await client.complete(prompt=["a", "b", "c"]), 429)
    assert backend.num_open == 0


async def test_the_request_id_is_echoed_or_made(client: Client) -> None:
    response = await client.get("/health", headers={"x-request-id": "mine-1"})
    assert response.headers["x-request-id"] == "mine-1"
    for bad in ("", "a b", "x" * 200):
        assert (await client.get("/health", headers={"x-request-id": bad})).headers["x-request-id"] not in ("", bad)


async def test_a_plain_run_without_drafts_has_no_speculation_metrics() -> None:
    script: Script = lambda request: runs_of(request, [70], [71], stats=SequenceStats(1, 0, 0))  # noqa: E731
    async with Client(ScriptedBackend(script)) as client:
        assert "metrics" not in (await client.complete()).json()


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
