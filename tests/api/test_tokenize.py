"""vLLM's /tokenize and /detokenize, and /version: shapes, round trips, and what is refused."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest

from api.chat import chat_prompt
from api.openai import Message
from api.version import version
from tests.api.api_client import TEXT, Client, error_of
from tests.api.api_twins import ScriptedBackend, card, says, tiny_tokenizer
from tests.api.tool_cases import HERMES, TOOLS

MESSAGES = [{"role": "user", "content": "grüße"}]


async def tokens_of(client: Client, **fields: Any) -> list[int]:
    response = await client.post("/tokenize", json=fields)
    assert response.status_code == 200, response.text
    tokens: list[int] = response.json()["tokens"]
    return tokens


async def test_a_prompt_is_told_as_vllm_tells_it(client: Client) -> None:
    ids = tiny_tokenizer().encode("import os")
    told = (await client.post("/tokenize", json={"model": "tiny", "prompt": "import os"})).json()
    assert told == {"count": len(ids), "max_model_len": 64, "tokens": ids, "token_strs": None}
    told = (await client.post("/tokenize", json={"model": "tiny", "prompt": "a b", "return_token_strs": True})).json()
    assert told["token_strs"] == tiny_tokenizer().convert_ids_to_tokens(told["tokens"])
    assert len(told["token_strs"]) == told["count"]


async def test_the_count_is_that_of_a_completion(client: Client, backend: ScriptedBackend) -> None:
    tokens = await tokens_of(client, model="tiny", prompt=TEXT)
    usage = (await client.complete(prompt=TEXT)).json()["usage"]
    assert backend.requests[-1].prompt_ids == tuple(tokens)
    assert usage["prompt_tokens"] == len(tokens)
    tokens = await tokens_of(client, model="tiny", messages=MESSAGES)
    await client.chat(messages=MESSAGES)
    assert backend.requests[-1].prompt_ids == tuple(tokens)


async def test_the_opening_of_the_models_turn_can_be_left_out(client: Client) -> None:
    whole = await tokens_of(client, model="tiny", messages=MESSAGES)
    bare = await tokens_of(client, model="tiny", messages=MESSAGES, add_generation_prompt=False)
    opening = tiny_tokenizer().encode("<|bos|>assistant: ", add_special_tokens=False)
    assert whole == bare + opening
    assert tuple(whole) == await chat_prompt(card(), [Message(role="user", content="grüße")])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields",
    [
        {"continue_final_message": True},
        {"add_generation_prompt": False},
        {"tools": TOOLS},
        {"tools": TOOLS, "tool_choice": "none"},
        {"chat_template_kwargs": {"mood": "polite"}},
    ],
    ids=str,
)
async def test_whatever_a_chat_says_of_its_prompt_counts_here_too(fields: dict[str, Any]) -> None:
    template = HERMES + "{% if mood %}{{ mood }}{% endif %}"
    backend = ScriptedBackend(says(TEXT), (card(max_model_len=2048, chat_template=template),))
    async with Client(backend) as client:
        tokens = await tokens_of(client, messages=MESSAGES, **fields)
        usual = await tokens_of(client, messages=MESSAGES)
        assert (await client.chat(messages=MESSAGES, **fields)).status_code == 200
    assert backend.requests[-1].prompt_ids == tuple(tokens)
    assert (tokens == usual) == ("tool_choice" in fields)


async def test_special_tokens_of_a_prompt_can_be_left_out() -> None:
    class Marking:
        """Writes a special token before every prompt, as the tokenizers of many checkpoints do."""

        def encode(self, text: str, add_special_tokens: bool, **options: Any) -> list[int]:
            return [0] * add_special_tokens + tiny_tokenizer().encode(text)

    marking: Any = Marking()
    async with Client(ScriptedBackend(says(TEXT), (replace(card(), tokenizer=marking),))) as client:
        for asked, first in (({}, [0]), ({"add_special_tokens": True}, [0]), ({"add_special_tokens": False}, [])):
            tokens = await tokens_of(client, prompt="os", **asked)
            assert tokens == first + tiny_tokenizer().encode("os")


@pytest.mark.parametrize(
    "text", [TEXT, "", " a  b \n", "日本語 🙂🙃", "<|eos|>", "def f(x): return {'a': [1, 2]}"], ids=repr
)
async def test_a_text_comes_back_whole(client: Client, text: str) -> None:
    tokens = await tokens_of(client, model="tiny", prompt=text)
    told = await client.post("/detokenize", json={"model": "tiny", "tokens": tokens})
    assert told.json() == {"prompt": text}


async def test_random_texts_come_back_whole(client: Client) -> None:
    rng = random.Random(3)
    for _ in range(20):
        text = "".join(chr(rng.choice([rng.randrange(32, 127), rng.randrange(0xA1, 0x500)])) for _ in range(30))
        tokens = await tokens_of(client, prompt=text)
        assert (await client.post("/detokenize", json={"tokens": tokens})).json() == {"prompt": text}


async def test_control_tokens_of_a_message_are_counted_as_the_characters_that_they_are(client: Client) -> None:
    eos = tiny_tokenizer().eos_token_id
    written = await tokens_of(client, messages=[{"role": "user", "content": "<|eos|>"}])
    plain = await tokens_of(client, messages=[{"role": "user", "content": "eos"}])
    assert written.count(eos) == plain.count(eos)
    assert (await tokens_of(client, prompt="<|eos|>")) == [eos]


async def test_the_model_may_be_left_out_where_there_is_one() -> None:
    async with Client(ScriptedBackend(says(TEXT), (card("up"), card("down")), away=("down",))) as client:
        error = error_of(await client.post("/tokenize", json={"prompt": "a"}), 400)
        assert (error["message"], error["param"]) == ("model is missing; this server has up, down", "model")
        error_of(await client.post("/detokenize", json={"tokens": [5]}), 400)
        for path, fields in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [5]})):
            assert (await client.post(path, json={"model": "up"} | fields)).status_code == 200
            error_of(await client.post(path, json={"model": "down"} | fields), 503)
            error_of(await client.post(path, json={"model": "huge"} | fields), 404)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({}, "prompt", "send one of prompt and messages"),
        ({"prompt": "a", "messages": MESSAGES}, "prompt", "send one of prompt and messages"),
        ({"prompt": "a", "tokenize": True}, "tokenize", "unknown parameter 'tokenize'; leave it out"),
        ({"prompt": ["a"]}, "prompt", "prompt: Input should be a valid string"),
        ({"prompt": "\ud800"}, "prompt", "prompt holds half of a surrogate pair"),
        (
            {"prompt": "a", "add_generation_prompt": True},
            "add_generation_prompt",
            "add_generation_prompt needs messages",
        ),
        ({"messages": MESSAGES, "add_special_tokens": True}, "add_special_tokens", "the chat template writes"),
        ({"prompt": "a", "tools": TOOLS}, "tools", "tools needs messages; leave it out"),
        ({"messages": MESSAGES, "tools": TOOLS}, "tools", "the chat template of tiny has no tools"),
        ({"messages": MESSAGES, "chat_template_kwargs": {"x": 1}}, "chat_template_kwargs", "chat_template_kwargs: the"),
        (
            {"messages": MESSAGES, "continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message",
            "continue_final_message goes on with the last message",
        ),
        ({"messages": []}, "messages", "messages: List should have at least 1 item"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages", "messages[0].content[0].type"),
    ],
    ids=str,
)
async def test_a_body_that_is_not_understood_is_a_400(
    client: Client, fields: dict[str, Any], param: str, message: str
) -> None:
    error = error_of(await client.send_raw("/tokenize", json.dumps({"model": "tiny"} | fields).encode()), 400)
    assert error["param"] == param
    assert error["message"].startswith(message)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([5, 320], "tokens[1] is outside the vocabulary of 320"),
        ([-1], "tokens[0] is outside the vocabulary of 320"),
        ([1 << 70], "tokens[0] is outside the vocabulary of 320"),
        ([5, "geheim"], "tokens[1]: Input should be a valid integer"),
        ("geheim", "tokens: Input should be a valid list"),
        (None, "tokens is missing"),
    ],
    ids=str,
)
async def test_tokens_that_are_none_are_a_400_that_repeats_nothing(client: Client, tokens: Any, message: str) -> None:
    response = await client.post("/detokenize", json={"model": "tiny", "tokens": tokens})
    error = error_of(response, 400)
    assert (error["message"], error["param"]) == (message, "tokens")
    assert "geheim" not in response.text


async def test_a_prompt_that_cannot_fit_is_refused_before_it_is_read(client: Client) -> None:
    error = error_of(await client.post("/tokenize", json={"prompt": "x" * 5000}), 400)
    assert error["code"] == "context_length_exceeded"


async def test_the_server_tells_its_version(client: Client) -> None:
    assert (await client.get("/version")).json() == {"version": version()}
    assert version().split(".")[0].isdecimal()


async def test_a_template_of_the_requests_own_is_refused_as_in_a_chat(client: Client) -> None:
    asked = {"messages": MESSAGES, "chat_template": "{{ messages }}"}
    chat = error_of(await client.chat(**asked), 400)
    assert error_of(await client.post("/tokenize", json=asked), 400) == chat
