"""The Responses API, through OpenAI's client: it says what the chat route says, in items, whole and as events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from protocol.errors import QueueFull
from protocol.request import FinishReason
from tests.api.api_client import TEXT, Client, error_of
from tests.api.api_twins import EngineBackend, ScriptedBackend, card, make_engine, runs_of, tiny_tokenizer
from tests.api.served import served
from tests.api.tool_cases import CONVERSATION, FORMS, HERMES, QUESTION, TEXTS, TOOLS, backend_of

ASK: dict[str, Any] = {"model": "tiny", "input": "grüße"}
FLAT: Any = [{"type": "function"} | tool["function"] for tool in TOOLS]
CALLS = [("weather", '{"city": "Köln 🙂"}'), ("time", "{}")]


async def respond(client: Client, **changes: Any) -> Any:
    return await client.post("/v1/responses", json=ASK | changes)


def events(text: str) -> list[Any]:
    """The JSON of each event, whose name must be its type, numbered from 0."""
    *blocks, rest = text.split("\n\n")
    assert rest == ""
    parsed = []
    for number, block in enumerate(blocks):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        parsed.append(event)
    return parsed


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    engine = make_engine(tmp_path_factory.mktemp("tiny"))
    with (
        served(EngineBackend(engine, card(max_model_len=engine.max_length))) as url,
        openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client,
    ):
        yield client
    engine.stop()


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_response_says_what_the_chat_says(official: openai.OpenAI, temperature: float) -> None:
    same: Any = {"model": "tiny", "temperature": temperature, "extra_body": {"seed": 5}}
    messages: Any = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "grüße"}]
    chat = official.chat.completions.create(messages=messages, max_completion_tokens=20, **same)
    asked: Any = {"input": "grüße", "instructions": "be brief", "max_output_tokens": 20, **same}
    whole = official.responses.create(**asked)
    assert whole.output_text == chat.choices[0].message.content
    assert (whole.status == "incomplete") == (chat.choices[0].finish_reason == "length")
    assert whole.usage is not None
    assert chat.usage is not None
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (
        chat.usage.prompt_tokens,
        chat.usage.completion_tokens,
    )
    assert (whole.instructions, whole.temperature, whole.store) == ("be brief", temperature, False)  # type: ignore[attr-defined]
    streamed = list(official.responses.create(stream=True, **asked))
    assert "".join(each.delta for each in streamed if each.type == "response.output_text.delta") == whole.output_text
    last: Any = streamed[-1]
    assert last.response.output_text == whole.output_text
    assert (last.response.status, last.response.usage) == (whole.status, whole.usage)


def test_the_events_of_a_text_are_openais(official: openai.OpenAI) -> None:
    kinds = [event.type for event in official.responses.create(stream=True, **ASK, max_output_tokens=8)]
    head = ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
    tail = ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
    assert kinds[:4] == head
    assert kinds[-4:-1] == tail
    assert kinds[-1] in ("response.completed", "response.incomplete")
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    with official.responses.stream(**ASK, max_output_tokens=8) as stream:
        assert [*stream][-1].type in ("response.completed", "response.incomplete")


@FORMS
@pytest.mark.parametrize("before", ["", "I look. "])
def test_calls_are_items_of_their_own(template: str, before: str) -> None:
    asked: Any = ASK | {"tools": FLAT}
    with (
        served(backend_of(template, before + TEXTS[template])) as url,
        openai.OpenAI(base_url=url, api_key="x") as client,
    ):
        whole = client.responses.create(**asked)
        with client.responses.stream(**asked) as stream:
            streamed = [*stream]
            final = stream.get_final_response()
        first = client.responses.create(parallel_tool_calls=False, **asked)
    for response in (whole, final):
        calls = [item for item in response.output if item.type == "function_call"]
        assert [(call.name, call.arguments, call.status) for call in calls] == [(*call, "completed") for call in CALLS]
        assert (response.output_text, response.status) == (before.rstrip(), "completed")
        assert [item.type for item in response.output] == ["message"] * bool(before) + ["function_call"] * 2
    assert [item.name for item in first.output if item.type == "function_call"] == ["weather"]
    pieces: dict[int, str] = {}
    for event in streamed:
        if event.type == "response.function_call_arguments.delta":
            pieces[event.output_index] = pieces.get(event.output_index, "") + event.delta
    assert [*pieces.values()] == [arguments for _, arguments in CALLS]


async def test_answers_and_results_sent_back_are_the_chats_conversation() -> None:
    backend = backend_of(HERMES, "I look. " + TEXTS[HERMES])
    async with Client(backend) as client:
        output = (await respond(client, tools=FLAT)).json()["output"]
        results = [
            {"type": "function_call_output", "call_id": output[2]["call_id"], "output": "noon"},
            {"type": "function_call_output", "call_id": output[1]["call_id"], "output": "rain"},
        ]
        question = {"role": "user", "content": [{"type": "input_text", "text": "grüße"}]}
        assert (await respond(client, input=[question, *output, *results], tools=FLAT)).status_code == 200
        calls = [
            {"id": item["call_id"], "function": {"name": item["name"], "arguments": item["arguments"]}}
            for item in output[1:]
        ]
        messages = [
            {"role": "user", "content": "grüße"},
            {"role": "assistant", "content": "I look.", "tool_calls": calls},
            {"role": "tool", "tool_call_id": calls[1]["id"], "content": "noon"},
            {"role": "tool", "tool_call_id": calls[0]["id"], "content": "rain"},
        ]
        assert (await client.chat(messages=messages, tools=TOOLS)).status_code == 200
    assert backend.requests[1].prompt_ids == backend.requests[2].prompt_ids


async def test_calls_alone_and_the_assistants_text_are_taken() -> None:
    backend = backend_of(HERMES, "x")
    items = [
        {"type": "message", "role": "user", "content": "wetter in köln?"},
        {"type": "function_call", "call_id": "a1", "name": "weather", "arguments": '{"city": "Köln"}', "id": "fc_1"},
        {"type": "function_call", "call_id": "b2", "name": "time", "arguments": "{}", "status": "completed"},
        {"type": "function_call_output", "call_id": "b2", "output": [{"type": "input_text", "text": "noon"}]},
        {"type": "function_call_output", "call_id": "a1", "output": "rain"},
    ]
    async with Client(backend) as client:
        assert (await respond(client, input=items)).status_code == 200
        assert (await client.chat(messages=CONVERSATION)).status_code == 200
    assert backend.requests[0].prompt_ids == backend.requests[1].prompt_ids


async def test_an_answer_that_reaches_its_limit_is_incomplete() -> None:
    backend = backend_of(HERMES, "x")
    for text, kind in (("words", "message"), (TEXTS[HERMES][:50], "function_call")):
        ids = tiny_tokenizer().encode(text)
        backend.script = lambda request, ids=ids: runs_of(request, ids, reason=FinishReason.LENGTH)  # type: ignore[misc]
        async with Client(backend) as client:
            body = (await respond(client, tools=FLAT)).json()
            last = events((await respond(client, tools=FLAT, stream=True)).text)[-1]
        assert last["type"] == "response.incomplete"
        for response in (body, last["response"]):
            assert (response["status"], response["incomplete_details"]) == (
                "incomplete",
                {"reason": "max_output_tokens"},
            )
            assert (response["output"][-1]["type"], response["output"][-1]["status"]) == (kind, "incomplete")


async def test_an_answer_without_a_word_is_an_empty_message() -> None:
    async with Client(ScriptedBackend(lambda request: runs_of(request, [tiny_tokenizer().eos_token_id]))) as client:
        (item,) = (await respond(client)).json()["output"]
    assert (item["type"], item["content"][0]["text"]) == ("message", "")


async def test_a_response_repeats_what_was_asked_for(client: Client) -> None:
    body = (await respond(client, seed=7, top_p=0.5, metadata={"a": "b"}, store=False, include=[], user="me")).json()
    assert body["id"].startswith("resp_")
    assert (body["seed"], body["top_p"], body["metadata"], body["tools"]) == (7, 0.5, {"a": "b"}, [])
    assert body["output"][0]["content"] == [{"type": "output_text", "text": TEXT, "annotations": [], "logprobs": []}]
    assert body["metrics"]["speculative_decoding"]["num_draft_tokens"] == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"store": True}, "store True is not supported; leave it out or send false"),
        ({"previous_response_id": "resp_1"}, "previous_response_id 'resp_1' is not supported; leave it out"),
        ({"conversation": "conv_1"}, "conversation 'conv_1' is not supported"),
        ({"background": True}, "background True is not supported"),
        ({"n": 2}, "n 2 is not supported"),
        ({"max_tokens": 2}, "max_tokens 2 is not supported"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format: type json_schema and a schema go together"),
        ({"text": {"format": {"type": "json_object", "schema": {}}}}, "text.format: type json_schema and a schema go"),
        ({"reasoning": {"effort": "low"}}, "reasoning {'effort': 'low'} is not supported"),
        ({"truncation": "auto"}, "truncation 'auto' is not supported"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].name is missing"),
        ({"tools": [FLAT[1], FLAT[1]]}, "tools have two functions 'time'"),
        ({"tools": FLAT, "tool_choice": {"type": "function", "name": "f"}}, "there is no function 'f' among"),
        ({"tool_choice": "required"}, "a call is asked for and there are no tools"),
        ({"input": None}, "input is missing"),
        ({"input": []}, "input: List should have at least 1 item"),
        ({"input": 5}, "input: Input should be a valid list"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]: Input tag 'item_reference'"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].message.content[0].type:"),
        (
            {"input": [{"type": "function_call_output", "output": "x"}]},
            "input[0].function_call_output.call_id is missing",
        ),
        ({"input": "word " * 300}, "input has 1500 bytes"),
        ({"input": "a b c d " * 20}, "the prompt has"),
        ({"max_output_tokens": 0}, "max_tokens 0 is below 1"),
        ({"max_output_tokens": 1 << 20}, "max_tokens 1048576 and a prompt of"),
        ({"colour": 1}, "unknown parameter 'colour'; leave it out"),
    ],
    ids=lambda value: repr(value)[:30] if isinstance(value, dict) else "",
)
async def test_a_refusal_names_the_place(client: Client, changes: Any, message: str) -> None:
    error = error_of(await respond(client, **changes), 400)
    assert error["message"].startswith(message)
    assert error["param"] in changes


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_before_the_first_token_is_a_status(stream: bool) -> None:
    async with Client(ScriptedBackend(lambda request: [QueueFull("full")])) as client:
        error_of(await respond(client, stream=stream), 429)


async def test_an_error_in_mid_stream_ends_it_as_failed() -> None:
    backend = ScriptedBackend(lambda request: [*runs_of(request, [70, 71], [72])[:1], RuntimeError("secret prompt")])
    async with Client(backend) as client:
        response = await respond(client, stream=True)
    *_, error, failed = events(response.text)
    assert (error["type"], error["code"]) == ("error", "internal_error")
    assert failed["type"] == "response.failed"
    assert (failed["response"]["status"], failed["response"]["error"]["code"]) == ("failed", "server_error")
    assert "secret" not in response.text
    assert backend.num_open == 0


async def test_the_async_client_streams_calls() -> None:
    with served(backend_of(HERMES, TEXTS[HERMES])) as url:
        async with openai.AsyncOpenAI(base_url=url, api_key="x") as client:
            asked: Any = {"model": "tiny", "input": QUESTION, "tools": FLAT}
            async for event in await client.responses.create(stream=True, **asked):
                last: Any = event
            whole = await client.responses.create(**asked)
    for response in (last.response, whole):
        assert [(item.name, item.arguments) for item in response.output] == CALLS
