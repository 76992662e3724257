"""Logprobs as the official client and gRPC read them: those of the engine, whole and in a stream."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from typing import Any

import openai
import pytest

from api import rpc
from model.vocabulary import Spellings
from protocol.logit_rules import TokenLogprobs
from protocol.pb import inference_pb2 as pb
from protocol.request import FinishReason, GenerateRequest, SamplingParams, StopRules, TokenRun
from targets.engine import Engine
from tests.api.api_client import Client, Context, events
from tests.api.api_twins import EngineBackend, ScriptedBackend, card, make_engine, tiny_tokenizer

PROMPT = "grüße aus"
ASKED: dict[str, Any] = {"model": "tiny", "temperature": 1.0, "seed": 5, "max_tokens": 40}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = make_engine(tmp_path_factory.mktemp("tiny"))
    yield engine
    engine.stop()


@pytest.fixture
def backend(engine: Engine) -> EngineBackend:
    return EngineBackend(engine, card(max_model_len=engine.max_length))


@pytest.fixture
async def official(backend: EngineBackend) -> AsyncIterator[openai.AsyncOpenAI]:
    http = Client(backend)
    async with openai.AsyncOpenAI(base_url="http://test/v1", api_key="none", max_retries=0, http_client=http) as client:
        yield client


def direct(engine: Engine, prompt_ids: list[int], count: int) -> tuple[list[int], list[TokenLogprobs]]:
    """The engine's own answer, without any API."""
    done, tokens, told = threading.Event(), [], []

    def on_run(run: TokenRun) -> None:
        tokens.extend(run.token_ids)
        told.extend(run.logprobs)
        if run.finish_reason is not None:
            done.set()

    stop = StopRules(40, frozenset({tiny_tokenizer().eos_token_id}))
    engine.submit(GenerateRequest("direct", tuple(prompt_ids), SamplingParams(seed=5), stop, logprobs=count), on_run)
    assert done.wait(30)
    return tokens, told


def spelled(token_ids: list[int]) -> bytes:
    pieces = [Spellings(tiny_tokenizer())[token] for token in token_ids]
    return b"".join(piece.spelling for piece in pieces if not piece.special)


async def test_a_completion_tells_the_engines_logprobs(engine: Engine, official: openai.AsyncOpenAI) -> None:
    tokens, told = direct(engine, tiny_tokenizer().encode(PROMPT), 3)
    choice = (await official.completions.create(prompt=PROMPT, logprobs=3, **ASKED)).choices[0]
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs == [own.chosen for own in told]
    assert len(logprobs.tokens) == len(tokens) > 8
    assert any(token.startswith("bytes:") for token in logprobs.tokens), "no token is a part of a character"
    for own, top, name in zip(told, logprobs.top_logprobs or (), logprobs.tokens, strict=True):
        assert sorted(top.values(), reverse=True) == sorted({own.chosen, *dict(own.top).values()}, reverse=True)
        assert top[name] == own.chosen
    for name, offset in zip(logprobs.tokens, logprobs.text_offset or (), strict=True):
        assert name.startswith(("bytes:", "<|")) or choice.text.startswith(name, offset)
    assert all(before <= after for before, after in pairwise(logprobs.text_offset or ()))


async def test_a_chat_tells_them_with_bytes_that_join_to_the_text(official: openai.AsyncOpenAI) -> None:
    messages: Any = [{"role": "user", "content": PROMPT}]
    made = await official.chat.completions.create(messages=messages, logprobs=True, top_logprobs=4, **ASKED)
    logprobs = made.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert made.usage is not None
    assert len(logprobs.content) == made.usage.completion_tokens
    text = b"".join(bytes(own.bytes or ()) for own in logprobs.content if not own.token.startswith("<|"))
    assert text.decode("utf-8", "replace") == made.choices[0].message.content
    for own in logprobs.content:
        assert len(own.top_logprobs) == 4
        assert [top.logprob for top in own.top_logprobs] == sorted((t.logprob for t in own.top_logprobs), reverse=True)
        assert bytes(own.bytes or ()).decode("utf-8", "backslashreplace") == own.token
        assert own.logprob <= own.top_logprobs[0].logprob <= 0


@pytest.mark.parametrize("stop", [None, "r"])
async def test_a_stream_tells_what_the_whole_answer_tells(official: openai.AsyncOpenAI, stop: str | None) -> None:
    asked = ASKED | {"prompt": PROMPT, "logprobs": 2, "stop": stop}
    whole = (await official.completions.create(**asked)).choices[0].logprobs
    assert whole is not None
    parts = [part.choices[0].logprobs async for part in await official.completions.create(**asked, stream=True)]
    for field in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [each for part in parts if part for each in getattr(part, field)] == getattr(whole, field)
    chat: Any = ASKED | {"messages": [{"role": "user", "content": PROMPT}], "logprobs": True, "stop": stop}
    said = (await official.chat.completions.create(**chat)).choices[0].logprobs
    pieces = [part.choices[0].logprobs async for part in await official.chat.completions.create(**chat, stream=True)]
    assert said is not None
    assert [each for piece in pieces if piece for each in piece.content or ()] == said.content
    assert pieces[0] is None, "the opening has no token"


async def test_a_stop_string_cuts_them_with_the_tokens(official: openai.AsyncOpenAI) -> None:
    made = await official.completions.create(prompt=PROMPT, logprobs=0, stop="r", **ASKED)
    assert made.usage is not None
    assert made.choices[0].finish_reason == "stop"
    assert made.choices[0].logprobs is not None
    assert len(made.choices[0].logprobs.tokens or ()) == made.usage.completion_tokens < 40


async def test_grpc_tells_the_same(engine: Engine, backend: EngineBackend) -> None:
    tokens, told = direct(engine, tiny_tokenizer().encode(PROMPT), 3)
    request = pb.GenerateRequest(text=PROMPT, logprobs=3, **ASKED)
    parts = [own async for part in rpc.generate(backend, request, Context()) for own in part.logprobs]
    assert [own.chosen.token_id for own in parts] == tokens
    assert [TokenLogprobs(own.chosen.logprob, tuple((t.token_id, t.logprob) for t in own.top)) for own in parts] == told
    assert b"".join(own.chosen.spelling for own in parts).startswith(spelled(tokens))
    silent = pb.GenerateRequest(text=PROMPT, **ASKED)
    assert not any([len(part.logprobs) async for part in rpc.generate(backend, silent, Context())])


ECHOED: dict[str, Any] = ASKED | {"echo": True, "logprobs": 2}


async def test_an_echo_tells_those_of_the_prompt_before_those_of_the_text(official: openai.AsyncOpenAI) -> None:
    ids = tiny_tokenizer().encode(PROMPT)
    for prompt in (PROMPT, ids):
        plain = (await official.completions.create(prompt=prompt, **ASKED | {"logprobs": 2})).choices[0]
        choice = (await official.completions.create(prompt=prompt, **ECHOED)).choices[0]
        assert choice.text == PROMPT + plain.text
        told, own = choice.logprobs, plain.logprobs
        assert told is not None
        assert own is not None
        assert told.token_logprobs is not None
        for field in ("tokens", "token_logprobs", "top_logprobs"):
            assert getattr(told, field)[len(ids) :] == getattr(own, field)
        assert [told.token_logprobs[0], (told.top_logprobs or [{}])[0]] == [None, None]
        for name, offset in zip(told.tokens or (), told.text_offset or (), strict=True):
            assert name.startswith(("bytes:", "<|")) or choice.text.startswith(name, offset)
        for place in range(1, len(ids)):
            asked: Any = ASKED | {"prompt": ids[:place], "max_tokens": 1, "logit_bias": {str(ids[place]): 100}}
            alone = (await official.completions.create(logprobs=2, **asked)).choices[0].logprobs
            assert alone is not None
            assert told.token_logprobs[place] == pytest.approx((alone.token_logprobs or [])[0], abs=1e-4)


@pytest.mark.parametrize("stop", [None, "r"])
async def test_an_echo_with_logprobs_streams_what_the_whole_answer_tells(
    official: openai.AsyncOpenAI, stop: str | None
) -> None:
    asked: Any = ECHOED | {"prompt": [PROMPT, "def"], "n": 2, "stop": stop}
    whole = await official.completions.create(**asked)
    parts = [part.choices[0].model_dump() async for part in await official.completions.create(**asked, stream=True)]
    for choice in (choice.model_dump() for choice in whole.choices):
        *own, last = [part for part in parts if part["index"] == choice["index"]]
        assert own, "the prompt comes before the text"
        joined = {
            name: [value for part in (*own, last) for value in part["logprobs"][name]] for name in last["logprobs"]
        }
        text = "".join(part["text"] for part in (*own, last))
        assert last | {"logprobs": joined, "text": text} == choice
    plain = await official.completions.create(**asked | {"echo": False})
    assert whole.usage == plain.usage
    assert [choice.finish_reason for choice in whole.choices] == [choice.finish_reason for choice in plain.choices]


async def test_grpc_tells_those_of_the_prompt_behind_its_first_token(backend: EngineBackend) -> None:
    ids = tiny_tokenizer().encode(PROMPT)
    first, part = [part async for part in rpc.generate(backend, pb.GenerateRequest(text=PROMPT, **ECHOED), Context())]
    assert [own.chosen.token_id for own in first.prompt_logprobs] == ids[1:]
    assert {len(own.top) for own in first.prompt_logprobs} == {2}
    assert (len(first.token_ids), len(part.prompt_logprobs)) == (0, 0)
    assert len(part.logprobs) == len(part.token_ids) > 0
    assert first.text == PROMPT
    silent = pb.GenerateRequest(text=PROMPT, **ECHOED | {"logprobs": None})
    assert not any([len(part.prompt_logprobs) async for part in rpc.generate(backend, silent, Context())])


async def test_who_does_not_ask_is_told_null(official: openai.AsyncOpenAI) -> None:
    assert (await official.completions.create(prompt=PROMPT, **ASKED)).choices[0].logprobs is None


async def test_a_token_that_cannot_come_has_openais_floor_and_not_infinity() -> None:
    never = -float("inf")
    told = (TokenLogprobs(never, ((71, 0.0), (72, never))),)
    backend = ScriptedBackend(lambda request: [TokenRun(request.request_id, 0, (70,), FinishReason.STOP, None, told)])
    async with Client(backend) as client:
        for stream in (False, True):
            response = await client.complete(logprobs=2, stream=stream)
            logprobs = (events(response) if stream else [response.json()])[0]["choices"][0]["logprobs"]
            assert logprobs["token_logprobs"] == [-9999.0]
            assert sorted(logprobs["top_logprobs"][0].values()) == [-9999.0, -9999.0, 0.0]
