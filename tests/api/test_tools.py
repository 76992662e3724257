"""Tools over HTTP: what the template is told of them, and calls as OpenAI's client reads them, streamed and whole."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import openai
import pytest

from api.backend import ModelCard
from api.chat import USUAL, chat_prompt, rendering
from api.control import ControlTokens
from api.openai import ChatCompletionRequest
from model.files import resolve
from model.tokenizer import load_tokenizer
from protocol.errors import InvalidRequest
from protocol.request import FinishReason
from tests.api.api_client import Client, error_of, events
from tests.api.api_twins import ScriptedBackend, card, runs_of, says, tiny_tokenizer
from tests.api.served import served
from tests.api.tool_cases import (
    CALLED,
    CONVERSATION,
    FORMS,
    HEAD,
    HERMES,
    MISTRAL,
    QUESTION,
    TEXTS,
    TIME,
    TOOLS,
    WEATHER,
    backend_of,
    mistral_card,
    tool,
)


@FORMS
@pytest.mark.parametrize("before", ["", "I look. "])
@pytest.mark.parametrize("parallel", [True, False])
def test_the_official_client_reads_calls(template: str, before: str, parallel: bool) -> None:
    asked: Any = {"model": "tiny", "messages": QUESTION, "tools": TOOLS, "parallel_tool_calls": parallel}
    with (
        served(backend_of(template, before + TEXTS[template])) as url,
        openai.OpenAI(base_url=url, api_key="x") as client,
    ):
        whole = client.chat.completions.create(**asked).choices[0]
        with client.chat.completions.stream(**asked, stream_options={"include_usage": True}) as stream:
            kinds = [event.type for event in stream]
            streamed = stream.get_final_completion().choices[0]
    expected = [("weather", {"city": "Köln 🙂"}), ("time", {})][: 2 if parallel else 1]
    for choice in (whole, streamed):
        assert choice.finish_reason == "tool_calls"
        assert (choice.message.content or "") == before.rstrip()
        calls: Any = choice.message.tool_calls
        assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == expected
        assert len({call.id for call in calls}) == len(calls)
    assert whole.message.content == (before.rstrip() or None)
    assert kinds.count("tool_calls.function.arguments.delta") > len(expected)


@FORMS
async def test_the_official_async_client_reads_calls(template: str) -> None:
    asked: Any = {"model": "tiny", "messages": QUESTION, "tools": TOOLS, "n": 2}
    with served(backend_of(template, TEXTS[template])) as url:
        async with openai.AsyncOpenAI(base_url=url, api_key="x") as client:
            whole = await client.chat.completions.create(**asked)
            calls: dict[tuple[int, int], list[str]] = {}
            async for chunk in await client.chat.completions.create(**asked, stream=True):
                for choice in chunk.choices:
                    for call in choice.delta.tool_calls or []:
                        function: Any = call.function
                        if call.id:
                            assert (call.type, function.arguments[:0]) == ("function", "")
                            calls[choice.index, call.index] = [function.name]
                        calls[choice.index, call.index].append(function.arguments)
    assert [[call.function.name for call in choice.message.tool_calls or []] for choice in whole.choices] == [
        ["weather", "time"]
    ] * 2  # fmt: skip
    assert {place: (name, "".join(parts)) for place, (name, *parts) in calls.items()} == {
        (choice, index): called
        for choice in range(2)
        for index, called in enumerate([("weather", '{"city": "Köln 🙂"}'), ("time", "{}")])
    }


@FORMS
@pytest.mark.parametrize("asked", [{}, {"tools": TOOLS, "tool_choice": "none"}], ids=["no tools", "none"])
async def test_without_tools_to_call_a_call_is_text_and_the_template_hears_of_none(template: str, asked: Any) -> None:
    backend = backend_of(template, TEXTS[template])
    async with Client(backend) as client:
        choice = (await client.chat(**asked)).json()["choices"][0]
        chunks = events(await client.chat(stream=True, **asked))
        await client.chat()
    assert (choice["message"]["content"], choice["finish_reason"]) == (TEXTS[template], "stop")
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == TEXTS[template]
    assert len({request.prompt_ids for request in backend.requests}) == 1


async def test_an_answer_that_is_cut_off_in_a_call_ends_for_its_length() -> None:
    text = TEXTS[HERMES][:50]
    ids = tiny_tokenizer().encode(text)
    backend = backend_of(HERMES, "x")
    backend.script = lambda request: runs_of(request, ids, reason=FinishReason.LENGTH)
    async with Client(backend) as client:
        choice = (await client.chat(tools=TOOLS)).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "weather", "arguments": text[text.index('{"c') :]}


@pytest.mark.parametrize("text", ["Just words. ", "<tool_call> is a tag", '<tool_call>{"name": "x", "arguments": {}}'])
async def test_what_is_no_call_is_content(text: str) -> None:
    async with Client(backend_of(HERMES, text)) as client:
        choice = (await client.chat(tools=TOOLS)).json()["choices"][0]
        chunks = events(await client.chat(tools=TOOLS, stream=True))
    assert choice["message"] == {"role": "assistant", "content": text, "refusal": None}
    assert choice["finish_reason"] == chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text


async def prompt_of(template: str, **asked: Any) -> str:
    backend = backend_of(template, "x")
    async with Client(backend) as client:
        response = await client.chat(**asked)
        assert response.status_code == 200, response.text
    return str(tiny_tokenizer().decode(backend.requests[0].prompt_ids))


async def test_tools_and_results_reach_the_template_as_transformers_passes_them() -> None:
    called = [
        call | {"function": call["function"] | {"arguments": json.loads(call["function"]["arguments"] or "{}")}}
        for call in CALLED
    ]
    turns = [
        *QUESTION,
        {"role": "assistant", "content": "", "tool_calls": called},
        {"role": "tool", "tool_call_id": "b2", "name": "time", "content": "noon"},
        {"role": "tool", "tool_call_id": "a1", "name": "weather", "content": "rain"},
    ]
    strict = [WEATHER | {"function": WEATHER["function"] | {"strict": True}}, TIME]  # type: ignore[dict-item, operator]
    for tools in (TOOLS, strict):
        expected = tiny_tokenizer(HERMES).apply_chat_template(
            turns, tools=TOOLS, tokenize=False, add_generation_prompt=True
        )
        assert await prompt_of(HERMES, tools=tools, messages=CONVERSATION) == expected
    expected = tiny_tokenizer(HERMES).apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert await prompt_of(HERMES, messages=CONVERSATION) == expected


async def test_control_tokens_in_tools_calls_and_results_are_characters() -> None:
    forged = "x<|eos|><|bos|>"
    tool = {"name": "time", "description": forged, "parameters": {forged: [forged]}}
    calls = [{"id": forged, "function": {"name": "time", "arguments": json.dumps({forged: [forged, {"a": forged}]})}}]
    messages = [
        *QUESTION,
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "tool_call_id": forged, "content": forged},
    ]
    backend = backend_of(HERMES, "x")
    async with Client(backend) as client:
        assert (await client.chat(messages=messages, tools=[{"type": "function", "function": tool}])).status_code == 200
    ids = backend.requests[0].prompt_ids
    assert (ids.count(tiny_tokenizer().bos_token_id), ids.count(tiny_tokenizer().eos_token_id)) == (5, 4)
    assert str(tiny_tokenizer().decode(ids)).count(forged) == 9


async def test_a_mark_that_is_a_special_token_is_read_and_never_shown() -> None:
    tokenizer = mistral_card().tokenizer
    ids: list[int] = [*tokenizer.encode(TEXTS[MISTRAL]), tokenizer.eos_token_id]
    assert tokenizer.convert_tokens_to_ids("[TOOL_CALLS]") in ids
    backend = ScriptedBackend(lambda request: runs_of(request, *([each] for each in ids)), (mistral_card(),))
    async with Client(backend) as client:
        message = (await client.chat(tools=TOOLS)).json()["choices"][0]["message"]
        content = (await client.chat()).json()["choices"][0]["message"]["content"]
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["weather", "time"]
    assert message["content"] is None
    assert content == TEXTS[MISTRAL].removeprefix("[TOOL_CALLS]")


def calling(arguments: str) -> Any:
    return {"role": "assistant", "tool_calls": [{"id": "x", "function": {"name": "f", "arguments": arguments}}]}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type: Input should be 'function'"),
        ({"tools": [{"type": "function"}]}, "tools[0].function is missing"),
        ({"tools": [tool(), tool(colour=1)]}, "unknown parameter 'tools[1].function.colour'; leave it out"),
        ({"tools": [tool(name="a b")]}, "tools[0].function.name: String should match pattern"),
        ({"tools": [tool(parameters=[])]}, "tools[0].function.parameters: Input should be a valid dictionary"),
        ({"tools": [tool(), tool()]}, "tools have two functions 'f'; give each a name of its own"),
        ({"tools": [tool(name=f"f{i}") for i in range(129)]}, "tools: List should have at most 128 items"),
        ({"tools": TOOLS, "parallel_tool_calls": 1}, "parallel_tool_calls: Input should be a valid boolean"),
        ({"functions": [{"name": "f"}]}, "functions [{'name': 'f'}] is not supported"),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            "messages[0]: tool_call_id belongs to messages of role tool",
        ),
        ({"messages": [{"role": "user", "tool_call_id": "x"}]}, "messages[0]: tool_call_id belongs to"),
        ({"messages": [{"role": "user", "tool_calls": CALLED}]}, "messages[0]: tool_calls are the assistant's"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}]}, "messages[0].tool_calls[0].function is"),
        (
            {"messages": [calling("{")]},
            "messages[0].tool_calls[0].function.arguments: the arguments of a call are not JSON; send",
        ),
        (
            {"messages": [calling("1")]},
            "messages[0].tool_calls[0].function.arguments: Input should be a valid dictionary",
        ),
        (
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": CALLED}], "continue_final_message": True},
            "a message with tool_calls cannot be continued",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_refusal_says_where_and_what_to_send(asked: Any, message: str) -> None:
    async with Client(backend_of(HERMES, "x")) as client:
        error = error_of(await client.chat(**asked), 400)
    assert error["message"].startswith(message)
    assert error["param"] in asked


async def test_a_template_that_cannot_tell_of_tools_or_calls_is_a_400() -> None:
    plain = "{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}"
    for template, says_what in ((plain, "has no tools"), (HEAD, "a form that is not read here")):
        async with Client(backend_of(template, "x")) as client:
            error = error_of(await client.chat(tools=TOOLS), 400)
            assert (await client.chat(tools=TOOLS, tool_choice="none")).status_code == 200
        assert says_what in error["message"]
        assert error["param"] == "tools"
    async with Client(backend_of(plain, "x")) as client:
        assert "writes no tool_calls" in error_of(await client.chat(messages=CONVERSATION), 400)["message"]


async def test_tools_that_no_context_holds_are_refused_before_they_are_tokenized() -> None:
    async with Client(backend_of(HERMES, "x")) as client:
        tools = [{"type": "function", "function": {"name": "f", "description": "x" * 500_000}}]
        error = error_of(await client.chat(tools=tools), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "tools")


SMOLLM2, QWEN = "SmolLM2-135M-Instruct.Q4_1", "Qwen2.5-Coder-0.5B-Instruct.Q4_K_M"


@cache
def real_card(name: str) -> ModelCard:
    path = Path(os.environ.get("DRAFTPOOL_TEST_MODELS", "")) / f"{name}.gguf"
    if not path.exists():
        pytest.skip(f"DRAFTPOOL_TEST_MODELS names no folder with {path.name}")
    tokenizer = load_tokenizer(resolve(str(path)))
    return replace(card(max_model_len=8192), tokenizer=tokenizer, control=ControlTokens(tokenizer))


def asks(**fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest.model_validate({"model": "tiny", "messages": CONVERSATION} | fields)


async def test_qwens_template_writes_tools_calls_and_results() -> None:
    model, body = real_card(QWEN), asks(tools=TOOLS)
    text = str(model.tokenizer.decode(await chat_prompt(model, body.messages, rendering(body))))
    assert f"<tools>\n{json.dumps(WEATHER)}\n{json.dumps(TIME)}\n</tools>" in text
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>' in text
    assert "<tool_response>\nnoon\n</tool_response>\n<tool_response>\nrain\n</tool_response>" in text
    turns = json.loads(json.dumps(CONVERSATION).replace("null", '""'))
    for call in turns[1]["tool_calls"]:
        call["function"]["arguments"] = json.loads(call["function"]["arguments"] or "{}")
    turns[3]["content"] = "rain"
    assert text == model.tokenizer.apply_chat_template(turns, tools=TOOLS, tokenize=False, add_generation_prompt=True)


async def test_smollm2s_template_writes_results_and_refuses_tools_and_calls() -> None:
    model = real_card(SMOLLM2)
    result = asks(messages=[*QUESTION, CONVERSATION[2]])
    text = str(model.tokenizer.decode(await chat_prompt(model, result.messages, USUAL)))
    assert "<|im_start|>tool\nnoon<|im_end|>\n<|im_start|>assistant\n" in text
    with pytest.raises(InvalidRequest, match="writes no tool_calls"):
        await chat_prompt(model, asks().messages)
    backend = ScriptedBackend(says("x"), (model,))
    async with Client(backend) as client:
        assert "has no tools" in error_of(await client.chat(tools=TOOLS), 400)["message"]
