"""response_format and structured_outputs over the real app and a real engine that drafts."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest

from api.structured import ResponseFormat, StructuredOutputs, grammar_of
from protocol.errors import InvalidRequest
from targets.engine import Engine
from tests.api.api_client import Client, error_of
from tests.api.api_twins import EngineBackend, card, make_drafting_engine

SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["ok", "n"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine, _ = make_drafting_engine(tmp_path_factory.mktemp("tiny"))
    yield engine
    engine.stop()


@pytest.fixture
async def client(engine: Engine) -> AsyncIterator[Client]:
    async with Client(EngineBackend(engine, card(max_model_len=engine.max_length))) as client:
        yield client


async def text_of(client: Client, seed: int, **fields: Any) -> tuple[str, str]:
    body = {"model": "tiny", "prompt": "grüße", "max_tokens": 120, "temperature": 1.0, "seed": seed} | fields
    answer = await client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    return choice["text"], choice["finish_reason"]


@pytest.mark.parametrize("seed", range(8))
async def test_an_answer_is_what_its_schema_says_with_drafts_and_without(client: Client, seed: int) -> None:
    text, reason = await text_of(client, seed, response_format=FORMAT)
    assert (text, reason) == await text_of(client, seed, response_format=FORMAT, speculation="off")
    if reason == "stop":
        answer = json.loads(text)
        assert set(answer) == {"ok", "n"}
        assert answer["n"] in range(100)


@pytest.mark.parametrize(
    ("asked", "pattern"),
    [
        ({"regex": "[ab]{3}c"}, "[ab]{3}c"),
        ({"choice": ["yes", "no (or so)"]}, r"yes|no \(or so\)"),
        ({"grammar": 'start: "x" "y"*'}, "xy*"),
        ({"json": {"enum": [1, "two"]}}, r'\s*(1|"two")\s*'),
    ],
)
async def test_vllms_ways_to_say_it(client: Client, asked: dict[str, Any], pattern: str) -> None:
    texts = [await text_of(client, seed, structured_outputs=asked) for seed in range(6)]
    ended = [text for text, reason in texts if reason == "stop"]
    assert ended
    assert all(re.fullmatch(pattern, text) for text in ended)


async def test_the_openai_client_streams_json(engine: Engine) -> None:
    http = Client(EngineBackend(engine, card(max_model_len=engine.max_length)))
    async with openai.AsyncOpenAI(
        base_url="http://test/v1", api_key="none", max_retries=0, http_client=http
    ) as official:
        asked: Any = {"response_format": FORMAT, "max_tokens": 120, "temperature": 0.0}
        messages: Any = [{"role": "user", "content": "tell"}]
        whole = await official.chat.completions.create(model="tiny", messages=messages, **asked)
        stream = await official.chat.completions.create(model="tiny", messages=messages, stream=True, **asked)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
    assert text == whole.choices[0].message.content


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"response_format": {"type": "xml"}}, "response_format", "json_object"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "go together"),
        ({"response_format": FORMAT, "ignore_eos": True}, "ignore_eos", "leave ignore_eos out"),
        ({"response_format": FORMAT, "min_tokens": 3}, "min_tokens", "leave min_tokens out"),
        ({"structured_outputs": {}}, "structured_outputs", "send one of"),
        ({"structured_outputs": {"json": "[1"}}, "structured_outputs", "no JSON object"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "send one of"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs", "cannot be used"),
        ({"structured_outputs": {"grammar": "begin: x"}}, "structured_outputs", "cannot be used"),
        ({"structured_outputs": {"regex": "a"}, "response_format": FORMAT}, "structured_outputs", "send one"),
        ({"structured_outputs": {"regex": "a" * 70_000}}, "structured_outputs", "too long"),
    ],
)
async def test_what_cannot_be_is_a_400_that_names_the_field(
    client: Client, fields: dict[str, Any], param: str, says: str
) -> None:
    body = {"model": "tiny", "prompt": "a", "max_tokens": 20} | fields
    error = error_of(await client.post("/v1/completions", json=body), 400)
    assert error["param"] == param
    assert says in error["message"]


async def test_a_response_has_the_form_that_its_text_asks_for(client: Client) -> None:
    shape = {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True}
    asked = {"model": "tiny", "input": "a", "seed": 1, "store": False, "max_output_tokens": 160}
    for form in (shape, {"type": "json_object"}, {"type": "text"}):
        response = await client.post("/v1/responses", json=asked | {"text": {"format": form}})
        assert response.status_code == 200, response.text
        body = response.json()
        assert body["text"] == {"format": form}
        if form["type"] == "json_schema" and body["status"] == "completed":
            assert set(json.loads(body["output"][0]["content"][0]["text"])) == {"ok", "n"}
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "seed": 1, "max_tokens": 160}
    same = (await client.post("/v1/chat/completions", json=chat | {"response_format": FORMAT})).json()
    response = await client.post("/v1/responses", json=asked | {"text": {"format": shape}})
    assert response.json()["output"][0]["content"][0]["text"] == same["choices"][0]["message"]["content"]


async def test_a_response_says_where_its_schema_cannot_be_held(client: Client) -> None:
    form = {"type": "json_schema", "name": "answer", "schema": {"type": "strang"}}
    body = {"model": "tiny", "input": "a", "store": False, "text": {"format": form}}
    error = error_of(await client.post("/v1/responses", json=body), 400)
    assert error["param"] == "text.format"
    assert "cannot be used" in error["message"]


@pytest.mark.parametrize("fields", [{"response_format": FORMAT}, {"structured_outputs": {"regex": "a"}}])
async def test_a_response_refuses_by_name_what_it_would_not_hold(client: Client, fields: dict[str, Any]) -> None:
    body = {"model": "tiny", "input": "a", "store": False} | fields
    error = error_of(await client.post("/v1/responses", json=body), 400)
    assert error["param"] in fields


def test_a_text_needs_no_grammar() -> None:
    assert grammar_of(ResponseFormat(type="text"), None, "format") == grammar_of(None, None, "format") == ""
    assert grammar_of(ResponseFormat(type="json_object"), None, "format")
    with pytest.raises(InvalidRequest, match="both shape the answer"):
        grammar_of(ResponseFormat(type="json_object"), StructuredOutputs(regex="a"), "format")
