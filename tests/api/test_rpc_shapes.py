"""Grammars, tools and sources over gRPC: what comes is what HTTP gives for the same call, streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import grpc
import pytest

from api import rpc
from api.refused import CallRefused
from protocol.pb import inference_pb2 as pb
from protocol.request import TokenRun
from targets.engine import Engine
from tests.api.api_client import CHAT, COMPLETION, Client, Context, call, events
from tests.api.api_twins import EngineBackend, ScriptedBackend, card, make_drafting_engine, runs_of
from tests.api.test_structured import SCHEMA
from tests.api.tool_cases import CALLED, CONVERSATION, FORMS, HERMES, TEXTS, TOOLS, backend_of

MESSAGES = [
    pb.ChatMessage(role="user", content=CONVERSATION[0]["content"]),
    pb.ChatMessage(
        role="assistant",
        tool_calls=[pb.ToolCall(id=each["id"], **each["function"]) for each in CALLED],
    ),
    pb.ChatMessage(role="tool", tool_call_id="b2", content="noon"),
    pb.ChatMessage(role="tool", tool_call_id="a1", content="rain"),
]
OFFERED = [
    pb.Tool(
        name=tool["function"]["name"],
        description=tool["function"].get("description"),
        parameters=json.dumps(tool["function"]["parameters"]) if "parameters" in tool["function"] else None,
    )
    for tool in TOOLS
]
GRAMMARS = pytest.mark.parametrize(
    ("over_grpc", "over_http"),
    [
        ({"json_schema": json.dumps(SCHEMA)}, {"json": SCHEMA}),
        ({"json_object": True}, {"json_object": True}),
        ({"regex": "[ab]{3}c"}, {"regex": "[ab]{3}c"}),
        ({"choice": pb.Choices(texts=["yes", "no"])}, {"choice": ["yes", "no"]}),
        ({"lark": 'start: "x" "y"*'}, {"grammar": 'start: "x" "y"*'}),
    ],
    ids=lambda fields: next(iter(fields)),
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine, _ = make_drafting_engine(tmp_path_factory.mktemp("tiny"))
    yield engine
    engine.stop()


def options(**fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(model="tiny", **fields)


async def chatted(backend: Any, **fields: Any) -> list[pb.GenerateResponse]:
    message = pb.ChatRequest(**{"messages": MESSAGES, "options": options(seed=5), **fields})
    return [response async for response in rpc.chat(backend, message, Context())]


def over_grpc_calls(parts: list[pb.GenerateResponse]) -> list[list[tuple[int, str, str]]]:
    return [[(each.index, each.name, each.arguments) for each in part.tool_calls] for part in parts if part.tool_calls]


def over_http_calls(chunks: list[Any]) -> list[list[tuple[int, str, str]]]:
    deltas = [chunk["choices"][0]["delta"].get("tool_calls", []) for chunk in chunks]
    return [
        [(each["index"], each["function"].get("name", ""), each["function"]["arguments"]) for each in delta]
        for delta in deltas
        if delta
    ]


@GRAMMARS
async def test_a_grammar_shapes_the_same_answer_as_over_http(
    engine: Engine, over_grpc: dict[str, Any], over_http: dict[str, Any]
) -> None:
    backend: Any = EngineBackend(engine, card(max_model_len=engine.max_length))
    asked: dict[str, Any] = {"seed": 3, "max_tokens": 60}
    prompt = CHAT["messages"][0]["content"]  # type: ignore[index]
    completed = rpc.generate(backend, options(text=COMPLETION["prompt"], **asked, **over_grpc), Context())
    answers = [
        [part async for part in completed],
        await chatted(
            backend, messages=[pb.ChatMessage(role="user", content=prompt)], options=options(**asked, **over_grpc)
        ),
    ]
    asked |= {"structured_outputs": over_http, "return_token_ids": True}
    async with Client(backend) as client:
        bodies = [(await client.complete(**asked)).json(), (await client.chat(**asked)).json()]
    for parts, body in zip(answers, bodies, strict=True):
        assert [token for part in parts for token in part.token_ids] == body["choices"][0]["token_ids"]


@pytest.mark.parametrize("is_chat", [False, True])
async def test_choices_are_those_of_the_same_call_over_http(engine: Engine, is_chat: bool) -> None:
    backend: Any = EngineBackend(engine, card(max_model_len=engine.max_length))
    asked: dict[str, Any] = {"seed": 3, "max_tokens": 20, "n": 3}
    message = options(**asked) if is_chat else options(text=COMPLETION["prompt"], **asked)
    user = [pb.ChatMessage(role="user", content=CHAT["messages"][0]["content"])]  # type: ignore[index]
    completed = rpc.generate(backend, message, Context())
    parts = await chatted(backend, messages=user, options=message) if is_chat else [part async for part in completed]
    async with Client(backend) as client:
        asked["return_token_ids"] = True
        body = (await (client.chat(**asked) if is_chat else client.complete(**asked))).json()
    for choice in body["choices"]:
        own = [part for part in parts if part.choice == choice["index"]]
        assert [token for part in own for token in part.token_ids] == choice["token_ids"]
        assert [bool(part.finish_reason) for part in own] == [False] * (len(own) - 1) + [True]
        assert (own[-1].seed, own[-1].usage.prompt_tokens) == (choice["seed"], body["usage"]["prompt_tokens"])
    assert len({part.request_id for part in parts}) == 1
    assert {part.choice for part in parts} == {0, 1, 2}
    assert len({tuple(choice["token_ids"]) for choice in body["choices"]}) == 3


@FORMS
@pytest.mark.parametrize("parallel", [True, False])
async def test_calls_come_piece_by_piece_as_over_http(template: str, parallel: bool) -> None:
    backend = backend_of(template, "I look. " + TEXTS[template])
    parts = await chatted(backend, tools=OFFERED, parallel_tool_calls=parallel)
    asked = {"messages": CONVERSATION, "tools": TOOLS, "parallel_tool_calls": parallel, "seed": 5}
    async with Client(backend) as client:
        chunks = events(await client.chat(**asked, stream=True))
    first, second = backend.requests
    assert replace(first, request_id="") == replace(second, request_id="")
    assert over_grpc_calls(parts) == over_http_calls(chunks)
    assert "".join(part.text for part in parts) == "I look."
    begun = [each for part in parts for each in part.tool_calls if each.HasField("name")]
    assert len({each.id for each in begun}) == len(begun) == 1 + parallel
    assert parts[-1].finish_reason == pb.FINISH_REASON_TOOL_CALLS


@pytest.mark.parametrize(
    ("over_grpc", "over_http"),
    [
        ({"tool_choice": "required"}, "required"),
        ({"tool_choice_function": "time"}, {"type": "function", "function": {"name": "time"}}),
        ({"tool_choice": "none"}, "none"),
    ],
)
async def test_a_choice_of_tools_asks_the_target_for_the_same(over_grpc: dict[str, Any], over_http: Any) -> None:
    backend = backend_of(HERMES, TEXTS[HERMES])
    parts = await chatted(backend, tools=OFFERED, **over_grpc)
    async with Client(backend) as client:
        body = {"messages": CONVERSATION, "tools": TOOLS, "tool_choice": over_http, "seed": 5}
        chunks = events(await client.chat(**body, stream=True))
    first, second = backend.requests
    assert replace(first, request_id="") == replace(second, request_id="")
    assert bool(first.grammar) is (over_http != "none")
    assert over_grpc_calls(parts) == over_http_calls(chunks)


async def test_template_options_make_the_same_prompt_as_over_http() -> None:
    template = "{% for m in messages %}<|bos|>{{ m.role }}: {{ m.content }}<|eos|>{% endfor %}{{ mood }}"
    template += "{% if add_generation_prompt %}<|bos|>assistant: {% endif %}"
    backend = backend_of(template, "x")
    message = [pb.ChatMessage(role="user", content="grüße")]
    asked: list[dict[str, Any]] = [
        {"chat_template_kwargs": {"mood": "gay"}},
        {"add_generation_prompt": False},
        {"continue_final_message": True},
    ]
    async with Client(backend) as client:
        for each in asked:
            spelled = {key: json.dumps(value) if isinstance(value, dict) else value for key, value in each.items()}
            await chatted(backend, messages=message, **spelled)
            assert (await client.chat(**each)).status_code == 200
    prompts = [request.prompt_ids for request in backend.requests]
    assert prompts[::2] == prompts[1::2]
    assert len(set(prompts)) == len(asked)


async def test_tokens_have_the_sources_that_they_have_over_http() -> None:
    def script(request: Any) -> list[TokenRun]:
        return [replace(run, sources=(0, 4, -2)) for run in runs_of(request, (70, 71, 72))]

    backend = ScriptedBackend(script)
    asked: dict[str, Any] = {"seed": 5, "return_token_sources": True}
    (part,) = [each async for each in rpc.generate(backend, options(text="import", **asked), Context())]
    async with Client(backend) as client:
        (choice,) = (await client.complete(**asked)).json()["choices"]
    assert list(part.token_sources) == choice["token_sources"] == [0, 4, -2]
    assert [request.tells_sources for request in backend.requests] == [True, True]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tools": [pb.Tool(name="time", parameters="{")]}, "tools"),
        ({"tools": [pb.Tool(name="time", parameters="[]")]}, "parameters"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"chat_template_kwargs": "{"}, "chat_template_kwargs"),
        ({"messages": [pb.ChatMessage(role="tool", content="rain")]}, "tool_call_id"),
        ({"options": options(json_schema="{")}, "the schema is no JSON object"),
        ({"options": options(choice=pb.Choices())}, "choice"),
    ],
)
async def test_what_makes_no_sense_is_an_invalid_argument_that_names_it(fields: dict[str, Any], named: str) -> None:
    context, backend = Context(), backend_of(HERMES, "x")
    with pytest.raises(CallRefused):
        _ = [
            each
            async for each in rpc.chat(
                backend, pb.ChatRequest(**{"messages": MESSAGES, "options": options(), **fields}), context
            )
        ]
    assert context.code is grpc.StatusCode.INVALID_ARGUMENT
    assert named in context.details


async def test_a_grammar_that_cannot_be_used_is_refused_in_a_completion() -> None:
    context = await call(backend_of(HERMES, "x"), options(text="a", regex="("))
    assert context.code is grpc.StatusCode.INVALID_ARGUMENT
