"""Several choices of a prompt, texts that begin with it, and what the end of a text is, over a real engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import openai
import pytest

from api import rpc
from api.seeds import choice_seed
from api.text import decode
from protocol.pb import inference_pb2 as pb
from tests.api.api_client import TEXT, Client, Context, error_of, events
from tests.api.api_twins import EngineBackend, Script, ScriptedBackend, card, make_engine, runs_of, tiny_tokenizer
from tests.api.served import served

ASKED: dict[str, Any] = {"model": "tiny", "max_tokens": 12, "temperature": 0.9, "seed": 5}
PROMPTS = ["import os", "grüße aus", "日本"]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    engine = make_engine(tmp_path_factory.mktemp("tiny"))
    with served(EngineBackend(engine, card(max_model_len=engine.max_length))) as url:
        yield url
    engine.stop()


@pytest.fixture
def official(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def test_choices_of_prompts_stand_together_and_each_can_be_had_alone(official: openai.OpenAI) -> None:
    made = official.completions.create(prompt=PROMPTS, n=3, **ASKED)
    assert [choice.index for choice in made.choices] == list(range(9))
    alone = [
        official.completions.create(prompt=PROMPTS[index // 3], **ASKED | {"seed": choice_seed(5, index)})
        for index in range(9)
    ]
    assert [choice.text for choice in made.choices] == [each.choices[0].text for each in alone]
    assert len({choice.text for choice in made.choices}) == 9
    assert made.usage is not None
    used = [each.usage for each in alone if each.usage]
    assert made.usage.prompt_tokens == sum(each.prompt_tokens for each in used[::3])
    assert made.usage.completion_tokens == sum(each.completion_tokens for each in used)


def test_choices_of_a_chat_are_the_same_streamed_and_whole(official: openai.OpenAI) -> None:
    asked: Any = {"messages": [{"role": "user", "content": "grüße"}], "n": 4, **ASKED}
    whole = official.chat.completions.create(**asked)
    texts, ends = [""] * 4, [""] * 4
    for chunk in official.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends[choice.index] = choice.finish_reason or ""
    assert texts == [choice.message.content for choice in whole.choices]
    assert ends == [choice.finish_reason for choice in whole.choices]
    assert len(set(texts)) == 4


async def test_choices_ask_for_no_more_at_once_than_a_replica_decodes(client: Client, backend: ScriptedBackend) -> None:
    assert (await client.chat(n=128)).status_code == 200
    assert len({request.sampling.seed for request in backend.requests}) == 128
    assert error_of(await client.chat(n=129), 400)["message"] == "n: Input should be less than or equal to 128, got 129"


@pytest.mark.parametrize("ids", [False, True], ids=["text", "token ids"])
@pytest.mark.parametrize("stop", [None, "a"])
def test_an_echo_is_the_prompt_and_then_the_same_text(official: openai.OpenAI, ids: bool, stop: str | None) -> None:
    prompt: Any = [tiny_tokenizer().encode(text) for text in PROMPTS] if ids else PROMPTS
    asked: Any = {"prompt": prompt, "n": 2, "stop": stop, **ASKED}
    plain = official.completions.create(**asked)
    whole = official.completions.create(echo=True, **asked)
    expected = [PROMPTS[index // 2] + choice.text for index, choice in enumerate(plain.choices)]
    assert [choice.text for choice in whole.choices] == expected
    assert whole.usage == plain.usage
    texts = [""] * 6
    for chunk in official.completions.create(echo=True, stream=True, **asked):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == expected


@pytest.mark.parametrize("num_ids", range(1, 8))
async def test_an_echo_of_ids_that_end_inside_a_character_joins_to_the_text_of_all_ids(num_ids: int) -> None:
    ids = tiny_tokenizer().encode("日𝄞🙃")
    prompt, rest = ids[:num_ids], ids[num_ids:]
    for after in (rest, tiny_tokenizer().encode("b")):
        async with Client(ScriptedBackend(writes(after))) as client:
            for stop in ([], ["never"]):
                body = (await client.complete(prompt=prompt, echo=True, stop=stop)).json()
                assert body["choices"][0]["text"] == decode(tiny_tokenizer(), prompt + after)


def writes(ids: Sequence[int]) -> Script:
    """A script that answers every request with these tokens, one a round, and ends as if the last were a stop."""
    return lambda request: runs_of(request, *([token] for token in ids))


async def test_the_stop_string_is_part_of_the_text_if_asked_for(client: Client) -> None:
    for stop, text in (
        (" add", "grüße 🙂 def add"),
        ([")", "(a"], "grüße 🙂 def add(a"),
        ("\n   ", TEXT[: -len(" return")]),
    ):
        body = (await client.complete(stop=stop, include_stop_str_in_output=True)).json()
        assert (body["choices"][0]["text"], body["choices"][0]["finish_reason"]) == (text, "stop")
        chunks = events(await client.complete(stop=stop, include_stop_str_in_output=True, stream=True))
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text


PAD, EOS = tiny_tokenizer().convert_tokens_to_ids(["<|pad|>", "<|eos|>"])
A, B = (tiny_tokenizer().convert_tokens_to_ids(letter) for letter in "ab")


@pytest.mark.parametrize(
    ("ids", "asked", "text"),
    [
        ([A, PAD, B, EOS], {}, "ab"),
        ([A, PAD, B, EOS], {"skip_special_tokens": False}, "a<|pad|>b"),
        ([A, PAD, B, EOS], {"skip_special_tokens": False, "ignore_eos": True}, "a<|pad|>b<|eos|>"),
        ([A, PAD, B, EOS], {"skip_special_tokens": False, "include_stop_str_in_output": True}, "a<|pad|>b<|eos|>"),
        ([A, PAD, B, EOS], {"include_stop_str_in_output": True}, "ab"),
        ([A, PAD], {"stop": "<|pad|>"}, "a"),
        ([A, PAD], {"stop": "<|pad|>", "include_stop_str_in_output": True}, "a<|pad|>"),
        ([A, PAD], {"stop": "<|pad|>", "skip_special_tokens": False}, "a"),
        ([A, PAD, B], {"stop": "d|>b", "skip_special_tokens": False}, "a<|pa"),
        ([A, B], {"stop_token_ids": [B]}, "ab"),
        ([A, B], {"stop_token_ids": [B], "skip_special_tokens": False}, "ab"),
        ([A, PAD], {"stop_token_ids": [PAD], "skip_special_tokens": False}, "a"),
    ],
    ids=str,
)
async def test_special_tokens_have_text_where_it_is_asked_for(ids: list[int], asked: Any, text: str) -> None:
    async with Client(ScriptedBackend(writes(ids))) as client:
        for extra in ({}, {"stop": [*([asked["stop"]] if "stop" in asked else []), "never"]}):
            body = (await client.complete(**asked | extra)).json()
            assert body["choices"][0]["text"] == text
            chunks = events(await client.complete(stream=True, **asked | extra))
            assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text


async def test_an_echo_shows_the_special_tokens_of_ids_as_the_text_does() -> None:
    async with Client(ScriptedBackend(writes([B, EOS]))) as client:
        for skip, text in ((True, "ab"), (False, "<|bos|>ab")):
            prompt = [tiny_tokenizer().bos_token_id, A]
            body = (await client.complete(prompt=prompt, echo=True, skip_special_tokens=skip)).json()
            assert body["choices"][0]["text"] == text
        body = (await client.complete(prompt="<|bos|>a", echo=True)).json()
        assert body["choices"][0]["text"] == "<|bos|>ab"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "ab"),
        ({"echo": True}, "importab"),
        ({"skip_special_tokens": False}, "a<|pad|>b"),
        ({"skip_special_tokens": False, "include_stop_str_in_output": True}, "a<|pad|>b<|eos|>"),
        ({"stop": ["b"], "include_stop_str_in_output": True, "echo": True}, "importab"),
        ({"stop": ["b"]}, "a"),
    ],
    ids=str,
)
async def test_grpc_means_the_same_by_the_same_fields(fields: Any, text: str) -> None:
    backend = ScriptedBackend(writes([A, PAD, B, EOS]))
    message = pb.GenerateRequest(model="tiny", text="import", **fields)
    parts = [part async for part in rpc.generate(backend, message, Context())]
    assert "".join(part.text for part in parts) == text
    async with Client(backend) as client:
        assert (await client.complete(**fields)).json()["choices"][0]["text"] == text
