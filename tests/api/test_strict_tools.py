"""`strict` of tools that the model chooses to call: over the real app, and a real engine that drafts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from transformers import PreTrainedTokenizerFast

from api import rpc
from api.control import ControlTokens
from model.vocabulary import Spellings
from protocol.pb import inference_pb2 as pb
from tests.api.api_client import Client, Context, error_of, events
from tests.api.api_twins import CORPUS, EngineBackend, byte_level, card, make_drafting_engine
from tests.api.call_offers import SCHEMAS
from tests.api.tool_cases import HERMES, QUESTION, backend_of, tool

STRICT: Any = [tool(name="weather", parameters=SCHEMAS["weather"], strict=True), tool(name="time")]
LOOSE: Any = [tool(name="weather", parameters=SCHEMAS["weather"], strict=False), tool(name="time", strict=None)]


@pytest.mark.parametrize(
    ("fields", "shapes"),
    [
        ({"tools": STRICT}, True),
        ({"tools": STRICT, "tool_choice": "none"}, False),
        ({"tools": LOOSE}, False),
        ({"tools": LOOSE, "response_format": {"type": "json_object"}}, True),
        ({"tools": LOOSE, "structured_outputs": {"json": json.dumps(SCHEMAS["weather"])}}, True),
        ({"tools": LOOSE, "structured_outputs": {"regex": "a+"}}, True),
        ({"tools": STRICT, "response_format": {"type": "text"}}, True),
    ],
)
async def test_an_answer_is_shaped_where_a_tool_is_strict(fields: Any, shapes: bool) -> None:
    backend = backend_of(HERMES, "x")
    async with Client(backend) as client:
        assert (await client.chat(**fields)).status_code == 200
        flat = {**fields, "tools": [{"type": "function"} | each["function"] for each in fields["tools"]]}
        if form := flat.pop("response_format", None):
            flat["text"] = {"format": form}
        if "structured_outputs" not in fields:  # responses have no such field
            assert (await client.post("/v1/responses", json={"model": "tiny", "input": "x", **flat})).status_code == 200
    assert {bool(request.grammar) for request in backend.requests} == {shapes}
    assert len({request.grammar for request in backend.requests}) == 1


async def test_calls_may_come_beside_a_json_form_and_nothing_beside_a_regex() -> None:
    backend = backend_of(HERMES, "x")
    async with Client(backend) as client:
        await client.chat(tools=LOOSE, structured_outputs={"json_object": True}, response_format={"type": "text"})
        for form in (
            {"json_object": True},
            {"json": {"type": "object"}},
            {"json": '{"type": "object"}'},
            {"regex": "a"},
        ):
            await client.chat(tools=LOOSE, structured_outputs=form)
        await client.chat(tools=LOOSE, response_format={"type": "json_object"})
        error = error_of(await client.chat(tools=LOOSE, structured_outputs={"json": "[1"}), 400)
    *same, regex, other = (request.grammar for request in backend.requests)
    assert {*same, other} == {other}
    assert "tool_call" in other
    assert "tool_call" not in regex
    assert (error["param"], "no JSON object" in error["message"]) == ("structured_outputs", True)


async def test_a_call_that_has_to_come_says_nothing_that_needs_a_form() -> None:
    backend = backend_of(HERMES, "x")
    async with Client(backend) as client:
        for more in ({}, {"response_format": {"type": "json_object"}}):
            assert (await client.chat(tools=LOOSE, tool_choice="required", **more)).status_code == 200
        error = error_of(await client.chat(tools=LOOSE, tool_choice="required", structured_outputs={"regex": "a"}), 400)
    assert len({request.grammar for request in backend.requests}) == 1
    assert (error["param"], "send one" in error["message"]) == ("tool_choice", True)


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"tools": [tool(name="g"), tool(parameters={"type": "strang"}, strict=True)]}, "tools", "tools[1].function"),
        ({"tools": STRICT, "ignore_eos": True}, "ignore_eos", "leave ignore_eos out"),
        ({"tools": STRICT, "min_tokens": 2}, "min_tokens", "leave min_tokens out"),
        ({"tools": [tool(strict="yes")]}, "tools", "tools[0].function.strict: Input should be a valid boolean"),
    ],
)
async def test_what_cannot_be_strict_is_a_400_that_names_the_place(fields: Any, param: str, says: str) -> None:
    async with Client(backend_of(HERMES, "x")) as client:
        error = error_of(await client.chat(**fields), 400)
    assert error["param"] == param
    assert says in error["message"]


@cache
def marked_tokenizer() -> PreTrainedTokenizerFast:
    """As large as the tiny one; <tool_call> is one of its special tokens."""
    names = {"bos_token": "<|bos|>", "eos_token": "<|eos|>"}
    bare = byte_level(CORPUS, 320, [*names.values(), "<tool_call>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, **names)
    tokenizer.chat_template = HERMES.replace("{{ tools | tojson }}", "")  # which a tiny context does not hold
    return tokenizer


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineBackend]:
    engine, _ = make_drafting_engine(tmp_path_factory.mktemp("tiny"), marked_tokenizer())
    own: Any = {"control": ControlTokens(marked_tokenizer()), "spellings": Spellings(marked_tokenizer())}
    yield EngineBackend(engine, replace(card(max_model_len=engine.max_length), tokenizer=marked_tokenizer(), **own))
    engine.stop()


Calls = list[tuple[str, str]]  # names and arguments
Said = tuple[str, Calls]
SPACES = [token for token in range(320) if str(marked_tokenizer().decode([token])).isspace()]
LIKED = dict.fromkeys(SPACES, -20) | {marked_tokenizer().convert_tokens_to_ids("<tool_call>"): 6}  # or it hardly calls


def whole(body: Any) -> Said:
    message = body["choices"][0]["message"]
    calls = [call["function"] for call in message.get("tool_calls", ())]
    return message["content"] or "", [(call["name"], call["arguments"]) for call in calls]


def streamed(chunks: list[Any]) -> Said:
    text, calls = "", dict[int, list[str]]()
    for delta in (chunk["choices"][0]["delta"] for chunk in chunks):
        text += delta.get("content") or ""
        for call in delta.get("tool_calls", ()):
            known = calls.setdefault(call["index"], [call["function"].get("name", ""), ""])
            known[1] += call["function"]["arguments"]
    return text, [(name, arguments) for name, arguments in calls.values()]


def responded(body: Any) -> Said:
    items = body["output"]
    text = "".join(part["text"] for item in items if item["type"] == "message" for part in item["content"])
    return text, [(item["name"], item["arguments"]) for item in items if item["type"] == "function_call"]


async def over_grpc(backend: EngineBackend, seed: int) -> Said:
    parameters = json.dumps(SCHEMAS["weather"])
    tools = [pb.Tool(name="weather", parameters=parameters, strict=True), pb.Tool(name="time")]
    options = pb.GenerateRequest(model="tiny", seed=seed, max_tokens=100, logit_bias=LIKED)
    messages = [pb.ChatMessage(role=each["role"], content=each["content"]) for each in QUESTION]
    text, calls = "", dict[int, list[str]]()
    message = pb.ChatRequest(options=options, messages=messages, tools=tools)
    async for response in rpc.chat(backend, message, Context()):
        text += response.text
        for call in response.tool_calls:
            known = calls.setdefault(call.index, [call.name, ""])
            known[1] += call.arguments
    return text, [(name, arguments) for name, arguments in calls.values()]


async def test_calls_are_the_same_with_drafts_and_without_whole_and_streamed_on_all_routes(
    backend: EngineBackend,
) -> None:
    same: Any = {"tools": STRICT, "max_tokens": 100, "logit_bias": {str(token): bias for token, bias in LIKED.items()}}
    flat = {**same, "tools": [{"type": "function"} | each["function"] for each in STRICT], "max_tokens": None}
    num_calls = num_drafted = 0
    async with Client(backend) as client:
        for seed in range(12):
            asked = {**same, "messages": QUESTION, "seed": seed}
            body = (await client.chat(**asked)).json()
            text, calls = whole(body)
            plain = (await client.chat(**asked, speculation="off")).json()
            assert whole(plain) == (text, calls)
            assert plain["usage"]["completion_tokens"] == body["usage"]["completion_tokens"]
            assert streamed(events(await client.chat(**asked, stream=True))) == (text, calls)
            item = {"model": "tiny", "input": QUESTION[0]["content"], "seed": seed, "max_output_tokens": 100}
            assert responded((await client.post("/v1/responses", json=flat | item)).json()) == (text, calls)
            assert await over_grpc(backend, seed) == (text, calls)
            num_drafted += body.get("metrics", {}).get("speculative_decoding", {}).get("num_draft_tokens", 0)
            if body["choices"][0]["finish_reason"] == "tool_calls":
                num_calls += len(calls)
                for name, arguments in calls:
                    schema = SCHEMAS["weather"] if name == "weather" else {}
                    Draft202012Validator(schema).validate(json.loads(arguments))
    assert num_calls > 3
    assert num_drafted > 0
