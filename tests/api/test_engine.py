"""The API over a real engine, through the official client and gRPC: what comes out is what the engine makes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import httpx
import openai
import pytest

from api.text import decode
from protocol import build
from protocol.logit_rules import NO_RULES, LogitRules
from protocol.pb import inference_pb2 as pb
from protocol.pb import inference_pb2_grpc as pb_grpc
from protocol.request import GenerateRequest, SamplingParams, StopRules, TokenRun
from targets.engine import Engine
from tests.api.api_twins import EngineBackend, card, make_engine, tiny_tokenizer
from tests.api.rpc_server import rpc_server
from tests.api.served import served

PROMPTS = ["import os", "def add(a, b):", "grüße aus", "日本"]
MAX_TOKENS = 24


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = make_engine(tmp_path_factory.mktemp("tiny"))
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def backend(engine: Engine) -> EngineBackend:
    return EngineBackend(engine, card(max_model_len=engine.max_length))


@pytest.fixture(scope="module")
def url(backend: EngineBackend) -> Iterator[str]:
    with served(backend) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(autouse=True)
def nothing_leaks(engine: Engine) -> Iterator[None]:
    yield
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and engine.stats().num_running + engine.stats().num_waiting:
        time.sleep(0.01)
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert stats.num_free_pages == stats.num_pages


def direct(
    engine: Engine,
    prompt: str,
    temperature: float,
    seed: int,
    max_tokens: int = MAX_TOKENS,
    rules: LogitRules = NO_RULES,
) -> list[int]:
    """The engine's own answer, without any API."""
    done = threading.Event()
    tokens: list[int] = []

    def on_run(run: TokenRun) -> None:
        tokens.extend(run.token_ids)
        if run.finish_reason is not None:
            done.set()

    ids = tuple(tiny_tokenizer().encode(prompt))
    stop = StopRules(max_tokens, frozenset({tiny_tokenizer().eos_token_id}))
    sampling = SamplingParams(temperature, seed=seed)
    engine.submit(GenerateRequest("direct", ids, sampling, stop, rules=rules), on_run)
    assert done.wait(30)
    return tokens


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_official_client_gets_the_engines_own_tokens(
    engine: Engine, client: openai.OpenAI, prompt: str, temperature: float
) -> None:
    expected = direct(engine, prompt, temperature, seed=5)
    asked: Any = {"model": "tiny", "prompt": prompt, "temperature": temperature, "seed": 5, "max_tokens": MAX_TOKENS}
    whole = client.completions.create(**asked, extra_body={"return_token_ids": True})
    assert whole.choices[0].model_dump()["token_ids"] == expected
    assert whole.choices[0].text == decode(tiny_tokenizer(), expected)
    assert whole.usage is not None
    assert whole.usage.completion_tokens == len(expected)
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage


RULES = LogitRules(((70, 4.0), (9, -100.0)), 1.5, -0.5, 1.2, 12, frozenset({tiny_tokenizer().eos_token_id}))
RULES_IN_JSON = {"repetition_penalty": 1.2, "min_tokens": 12}
RULES_OF_OPENAI: dict[str, Any] = {
    "frequency_penalty": 1.5,
    "presence_penalty": -0.5,
    "logit_bias": {"70": 4, "9": -100},
}


@pytest.mark.parametrize("temperature", [0.0, 0.8])
async def test_logit_rules_mean_the_same_over_http_over_grpc_and_in_the_engine(
    engine: Engine, url: str, stub: Any, temperature: float
) -> None:
    expected = direct(engine, PROMPTS[0], temperature, 5, rules=RULES)
    assert expected != direct(engine, PROMPTS[0], temperature, 5)
    asked: Any = {"model": "tiny", "temperature": temperature, "seed": 5, "max_tokens": MAX_TOKENS}
    extra = RULES_IN_JSON | {"return_token_ids": True}
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        made = await client.completions.create(prompt=PROMPTS[0], **asked, **RULES_OF_OPENAI, extra_body=extra)
    assert made.choices[0].model_dump()["token_ids"] == expected
    rules = RULES_IN_JSON | RULES_OF_OPENAI | {"logit_bias": {70: 4.0, 9: -100.0}}
    parts = [part async for part in stub.Generate(pb.GenerateRequest(text=PROMPTS[0], **asked, **rules))]
    assert [token for part in parts for token in part.token_ids] == expected


def test_a_drawn_seed_repeats_the_text(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny", "messages": [{"role": "user", "content": "grüße"}], "max_completion_tokens": 12}
    first = client.chat.completions.create(**asked)
    again = client.chat.completions.create(**asked, seed=first.model_dump()["seed"])
    assert first.choices[0].message.content == again.choices[0].message.content
    stream = client.chat.completions.create(**asked, seed=first.model_dump()["seed"], stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == first.choices[0].message.content


@pytest.mark.parametrize("asked", ["auto", "off", {"depth": 2, "length": 3}], ids=str)
def test_whatever_speculation_is_asked_for_an_engine_without_a_pool_decodes_plainly(
    engine: Engine, client: openai.OpenAI, asked: Any
) -> None:
    answer = client.completions.create(
        model="tiny",
        prompt="import os",
        temperature=0.8,
        seed=5,
        max_tokens=MAX_TOKENS,
        extra_body={"speculation": asked, "return_token_ids": True},
    ).model_dump()
    assert answer["choices"][0]["token_ids"] == direct(engine, "import os", 0.8, seed=5)
    assert "metrics" not in answer


def test_a_stop_string_cuts_the_same_text(engine: Engine, client: openai.OpenAI) -> None:
    whole = decode(tiny_tokenizer(), direct(engine, "import os", 0.8, seed=5))
    stop = whole[6:8]
    answer = client.completions.create(
        model="tiny", prompt="import os", temperature=0.8, seed=5, max_tokens=MAX_TOKENS, stop=stop
    )
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_the_official_client_sees_our_errors_as_its_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.completions.create(model="huge", prompt="a")
    with pytest.raises(openai.BadRequestError, match="shorten"):
        client.completions.create(model="tiny", prompt="word " * 300)
    with pytest.raises(openai.BadRequestError, match="logprobs 21 is not in"):
        client.completions.create(model="tiny", prompt="a", logprobs=21)
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "draftpool"


def test_a_full_queue_is_a_429(engine: Engine, client: openai.OpenAI) -> None:
    stands, goes_on = threading.Event(), threading.Event()

    def on_run(run: TokenRun) -> None:
        stands.set()
        assert goes_on.wait(30)

    room = engine.config.max_batch + engine.config.max_queue
    try:
        for index in range(room):
            request = GenerateRequest(f"held {index}", (5,), SamplingParams(), StopRules(2, frozenset()))
            engine.submit(request, on_run if index == 0 else lambda run: None)
            assert stands.wait(30), "the engine stands still before the next one comes"
        with pytest.raises(openai.RateLimitError):
            client.completions.create(model="tiny", prompt=[5], max_tokens=1)
    finally:
        goes_on.set()


@pytest.mark.parametrize("stop", [None, "a"])
def test_one_call_with_more_prompts_than_an_idle_engine_holds_is_answered(
    engine: Engine, client: openai.OpenAI, stop: str | None
) -> None:
    made = client.completions.create(model="tiny", prompt=[[5 + i] for i in range(20)], max_tokens=16, stop=stop)
    assert [choice.index for choice in made.choices] == list(range(20))


def test_one_prompt_many_times_has_as_many_answers_and_each_can_be_had_again(
    engine: Engine, client: openai.OpenAI
) -> None:
    asked: Any = {"model": "tiny", "max_tokens": 24, "temperature": 1.0, "extra_body": {"ignore_eos": True}}
    made = client.completions.create(prompt=["import"] * 6, **asked)
    assert len({choice.text for choice in made.choices}) == 6
    for choice in made.choices:
        seed: Any = choice.model_extra["seed"]  # type: ignore[index]
        assert client.completions.create(prompt="import", seed=seed, **asked).choices[0].text == choice.text


def test_a_client_that_goes_in_mid_stream_leaves_nothing_behind(engine: Engine, client: openai.OpenAI) -> None:
    for _ in range(3):
        stream = client.completions.create(
            model="tiny", prompt="import", stream=True, max_tokens=240, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        stream.close()


async def test_many_requests_at_once_get_the_texts_that_they_get_alone(engine: Engine, url: str) -> None:
    expected = [decode(tiny_tokenizer(), direct(engine, prompt, 0.8, seed=9)) for prompt in PROMPTS]
    fields = {"model": "tiny", "temperature": 0.8, "seed": 9, "max_tokens": MAX_TOKENS}
    async with httpx.AsyncClient() as client:
        asked = [client.post(f"{url}/completions", json=fields | {"prompt": prompt}) for prompt in PROMPTS]
        bodies = [response.json() for response in await asyncio.gather(*asked)]
    assert [body["choices"][0]["text"] for body in bodies] == expected


@pytest.fixture
async def stub(backend: EngineBackend) -> AsyncIterator[Any]:
    async with rpc_server(backend) as address, grpc.aio.insecure_channel(address) as channel:
        yield pb_grpc.InferenceStub(channel)


@pytest.mark.parametrize("prompt", PROMPTS)
async def test_grpc_gives_the_same_tokens(engine: Engine, stub: Any, prompt: str) -> None:
    expected = direct(engine, prompt, 0.8, seed=5)
    ids = pb.TokenIds(ids=tiny_tokenizer().encode(prompt))
    for how in ({"text": prompt}, {"token_ids": ids}):
        request = pb.GenerateRequest(model="tiny", temperature=0.8, seed=5, max_tokens=MAX_TOKENS, **how)
        parts = [part async for part in stub.Generate(request)]
        assert [token for part in parts for token in part.token_ids] == expected
        assert "".join(part.text for part in parts) == decode(tiny_tokenizer(), expected)
        assert [part.index for part in parts] == [sum(len(p.token_ids) for p in parts[:n]) for n in range(len(parts))]
        last = parts[-1]
        assert last.finish_reason in (pb.FINISH_REASON_STOP, pb.FINISH_REASON_LENGTH)
        assert (last.seed, last.usage.completion_tokens) == (5, len(expected))
        assert last.usage.prompt_tokens == len(ids.ids)
        assert last.stats.rounds == len(expected) - 1
        assert not parts[0].HasField("seed")


async def test_grpc_lists_models(stub: Any) -> None:
    models = (await stub.ListModels(pb.ListModelsRequest())).models
    assert [(model.id, model.max_model_len) for model in models] == [("tiny", 256)]


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (pb.GenerateRequest(model="huge", text="a"), grpc.StatusCode.NOT_FOUND),
        (pb.GenerateRequest(model="tiny"), grpc.StatusCode.INVALID_ARGUMENT),
        (pb.GenerateRequest(model="tiny", text=""), grpc.StatusCode.INVALID_ARGUMENT),
        (pb.GenerateRequest(model="tiny", text="a", max_tokens=0), grpc.StatusCode.INVALID_ARGUMENT),
        (pb.GenerateRequest(model="tiny", text="a", top_p=0.0), grpc.StatusCode.INVALID_ARGUMENT),
        (pb.GenerateRequest(model="tiny", text="a", logit_bias={999: 1.0}), grpc.StatusCode.INVALID_ARGUMENT),
        (pb.GenerateRequest(model="tiny", text="a", presence_penalty=-3.0), grpc.StatusCode.INVALID_ARGUMENT),
        (pb.GenerateRequest(model="tiny", text="a", max_tokens=3, min_tokens=4), grpc.StatusCode.INVALID_ARGUMENT),
        (pb.GenerateRequest(model="tiny", text="word " * 300), grpc.StatusCode.INVALID_ARGUMENT),
        (pb.GenerateRequest(model="tiny", token_ids=pb.TokenIds(ids=[999])), grpc.StatusCode.INVALID_ARGUMENT),
    ],
    ids=lambda value: value.name if isinstance(value, grpc.StatusCode) else str(value)[:40].replace("\n", " "),
)
async def test_grpc_errors_have_the_right_code(stub: Any, request_: Any, code: grpc.StatusCode) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [part async for part in stub.Generate(request_)]
    assert caught.value.code() is code
    assert "Traceback" not in (caught.value.details() or "")


async def test_cancelling_a_call_cancels_the_request(engine: Engine, stub: Any) -> None:
    call = stub.Generate(pb.GenerateRequest(model="tiny", text="import", ignore_eos=True))
    await call.read()
    call.cancel()
    async with asyncio.timeout(5):
        while engine.stats().num_running:
            await asyncio.sleep(0.01)


def test_the_generated_protocol_code_is_current() -> None:
    assert build.stale() == []
