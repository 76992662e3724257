"""A long prompt that is told with many logprobs: in messages of bounded size, and others have their turn meanwhile."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest
from starlette.responses import JSONResponse

import api.replies
from api.generation import PIECE
from api.json_pieces import MOST, encode, pieces
from model.vocabulary import Piece, Spellings
from protocol.logit_rules import MAX_TOP, TokenLogprobs
from protocol.pb import inference_pb2 as pb
from protocol.pb import inference_pb2_grpc as pb_grpc
from protocol.request import FinishReason, GenerateRequest, TokenRun
from tests.api.api_client import Client, events
from tests.api.api_twins import ScriptedBackend, card, tiny_tokenizer
from tests.api.rpc_server import rpc_server

GRPC_READS = 4 << 20  # bytes of a message, unless a client asks for more
PLACES_MOST = PIECE * (MAX_TOP + 3)  # spelled in one turn: those of the top, the chosen one, and a look at what it is


class Turns(Spellings):
    """Spellings that know how many the event loop's thread has looked up since others had their turn."""

    def __init__(self) -> None:
        super().__init__(tiny_tokenizer())
        self.most = self._since = 0
        self._thread = threading.current_thread()

    def __getitem__(self, token_id: int) -> Piece:
        if threading.current_thread() is self._thread:
            self._since += 1
            self.most = max(self.most, self._since)
        return super().__getitem__(token_id)

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        async def turn() -> None:
            while True:
                self._since = 0
                await asyncio.sleep(0)

        ticking = asyncio.create_task(turn())
        yield
        ticking.cancel()


def long_prompt(length: int) -> tuple[list[int], ScriptedBackend]:
    """A prompt of so many tokens, and a model that tells 20 logprobs at each of its places and of 200 tokens more."""
    rng = random.Random(length)
    ids = [rng.randrange(3, 300) for _ in range(length)]
    told = TokenLogprobs(-1.5, tuple((token, -2.0 - token / 8) for token in range(40, 40 + MAX_TOP)))

    def script(request: GenerateRequest) -> list[TokenRun]:
        text = tuple(ids[:200])
        of_prompt = (told,) * (length - 1)
        return [TokenRun("r", 0, text, FinishReason.LENGTH, None, (told,) * len(text), of_prompt=of_prompt)]

    return ids, ScriptedBackend(script, cards=(replace(card(max_model_len=1 << 16), spellings=Turns()),))


def turns_of(backend: ScriptedBackend) -> Turns:
    turns = backend.cards[0].spellings
    assert isinstance(turns, Turns)
    return turns


async def test_over_grpc_it_comes_in_messages_that_every_client_reads() -> None:
    ids, backend = long_prompt(20_000)
    asked = pb.GenerateRequest(model="tiny", token_ids=pb.TokenIds(ids=ids), echo=True, logprobs=20, max_tokens=200)
    async with rpc_server(backend) as address, grpc.aio.insecure_channel(address) as channel:
        stub: Any = pb_grpc.InferenceStub(channel)  # type: ignore[no-untyped-call]
        messages = [message async for message in stub.Generate(asked)]
    assert [own.chosen.token_id for message in messages for own in message.prompt_logprobs] == ids[1:]
    assert [own.chosen.token_id for message in messages for own in message.logprobs] == ids[:200]
    assert [token for message in messages for token in message.token_ids] == ids[:200]
    at = [message.index for message in messages if message.token_ids]
    assert at == [*range(0, 200, PIECE)]
    text = "".join(message.text for message in messages)
    assert text == tiny_tokenizer().decode(ids + ids[:200], skip_special_tokens=True)
    assert [bool(message.finish_reason) for message in messages] == [False] * (len(messages) - 1) + [True]
    sizes = [message.ByteSize() for message in messages]
    assert sum(sizes) > GRPC_READS > 8 * max(sizes)


@pytest.mark.parametrize("stream", [True, False])
async def test_over_http_others_have_their_turn_while_it_is_told(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, backend = long_prompt(1000)
    made, threads = api.replies.completion_logprobs, list[tuple[int, bool]]()

    def seen(scores: Any) -> Any:
        threads.append((len(scores), threading.current_thread() is threading.main_thread()))
        return made(scores)

    monkeypatch.setattr(api.replies, "completion_logprobs", seen)
    async with Client(backend) as client, turns_of(backend).watched():
        response = await client.complete(prompt=ids, echo=True, logprobs=20, max_tokens=200, stream=stream)
    assert response.status_code == 200
    assert 0 < turns_of(backend).most <= PLACES_MOST
    assert all(num_places <= PIECE or not on_the_loop for num_places, on_the_loop in threads)
    parts = events(response) if stream else [response.json()]
    told = [part["choices"][0]["logprobs"] for part in parts]
    assert [value for each in told for value in each["token_logprobs"]] == [None] + [-1.5] * 1199
    tops = [len(top or ()) for each in told for top in each["top_logprobs"]]
    assert tops[0] == 0
    assert len(tops) == 1200
    assert {*tops[1:]} == {20, 21}, "the chosen token may be one of the most probable"
    assert len(parts) == (-(-1000 // PIECE) + -(-200 // PIECE) if stream else 1)


async def test_a_long_answer_with_logprobs_gives_turns_too() -> None:
    _, backend = long_prompt(2000)
    async with Client(backend) as client, turns_of(backend).watched():
        response = await client.complete(prompt=[5], logprobs=20, max_tokens=200)
    assert len(response.json()["choices"][0]["logprobs"]["tokens"]) == 200
    assert 0 < turns_of(backend).most <= PLACES_MOST


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_without_a_token_has_an_end(stream: bool) -> None:
    ids, backend = [5, 6, 7], ScriptedBackend(lambda request: [TokenRun("r", 0, (), FinishReason.STOP)])
    async with Client(backend) as client:
        response = await client.complete(prompt=ids, logprobs=2, stop=["never"] if stream else None, stream=stream)
    assert response.status_code == 200, response.text
    parts = events(response) if stream else [response.json()]
    assert parts[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("seed", range(50))
def test_json_in_pieces_is_the_json_that_is_made_at_once(seed: int) -> None:
    rng = random.Random(seed)

    def value(depth: int) -> Any:
        kind = rng.choice(["dict", "list", "leaf"]) if depth else "leaf"
        if kind == "leaf":
            return rng.choice([None, True, 1, -2.5, "", 'ü"\n', {}, []])
        if kind == "dict":
            return {f'k"{name}': value(depth - 1) for name in range(rng.randint(0, 4))}
        return [value(depth - 1) for _ in range(rng.choice([0, 1, 3, MOST, MOST + 1, 3 * MOST + 5]))]

    body = {"choices": [value(3), value(2)], "usage": value(1)}
    assert encode(body) == JSONResponse(body).body


def test_no_piece_has_more_than_a_few_elements_of_a_long_list() -> None:
    made = list(pieces({"choices": [{"logprobs": {"tokens": ["x"] * 10_000}}]}))
    assert max(map(len, made)) <= len(json.dumps(["x"] * MOST))
