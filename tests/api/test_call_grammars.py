"""Calls that have to come: every text that the grammar allows is read as calls that hold to their tools' schemas."""

from __future__ import annotations

import random
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from llguidance import LLMatcher, LLTokenizer

from api.call_grammars import FORMS, grammar_of_calls
from api.call_parsers import Hermes, Llama3, Mistral
from api.calls import CallParser
from api.tools import Tool
from protocol.errors import InvalidRequest
from tests.api.api_client import Client, error_of, events
from tests.api.call_offers import OFFERED, PARSERS, SCHEMAS, SEEN, TOKENIZER, offer, read, written
from tests.api.tool_cases import HEAD, HERMES, LLAMA, MISTRAL, PARAMETERS, TOOLS, backend_of, mistral_card, tool


@PARSERS
@pytest.mark.parametrize("most", [None, 1])
def test_whatever_is_written_is_calls_that_hold_to_their_schemas(parser: type[CallParser], most: int | None) -> None:
    grammar = grammar_of_calls(offer(parser, many=most is None))
    rng, numbers, names = random.Random(1), set(), set()
    for _ in range(60):
        if (text := written(grammar, rng)) is None:
            continue
        calls = read(parser, text)
        for name, arguments in calls:
            Draft202012Validator(SCHEMAS[name]).validate(arguments)
            names.add(name)
        numbers.add(len(calls))
    assert names == set(SCHEMAS)
    assert numbers == {1} if most else len(numbers) > 1
    assert 0 not in numbers


def test_a_named_function_is_the_only_one() -> None:
    for parser in FORMS:
        grammar = grammar_of_calls(offer(parser, OFFERED[1:2], many=True))
        texts = [written(grammar, random.Random(seed)) for seed in range(20)]
        assert {name for text in texts if text for name, _ in read(parser, text)} == {"wait"}


def test_what_templates_write_is_what_the_grammar_asks_for() -> None:
    for parser, key, before, behind in (
        (Hermes, "arguments", "<tool_call>\n", "\n</tool_call>"),
        (Llama3, "parameters", "", ""),
        (Mistral, "arguments", "[TOOL_CALLS] [", "]"),
    ):
        text = f'{before}{{"name": "weather", "{key}": {{"at": "oslo"}}}}{behind}'
        matcher = LLMatcher(SEEN, grammar_of_calls(offer(parser)))
        assert matcher.consume_tokens(TOKENIZER.encode(text, add_special_tokens=False)), (parser, matcher.get_error())
        assert matcher.is_accepting()


@pytest.mark.parametrize("spelled", [False, True], ids=["the token", "its text"])
def test_a_mark_that_is_a_token_is_written_as_that_or_spelled(spelled: bool) -> None:
    model = mistral_card()
    mark = model.tokenizer.convert_tokens_to_ids("[TOOL_CALLS]")
    pieces = ("[TOOL", "_CALLS]", ' [{"name": "time", "arguments": {}}]')
    first, second, call = (model.tokenizer.encode(each, add_special_tokens=False) for each in pieces)
    text = [*(first + second if spelled else [mark]), *call]
    assert (mark in text) is not spelled
    seen = LLTokenizer(model.tokenizer.backend_tokenizer.to_str(), eos_token=[model.eos_token_ids[0]])
    matcher = LLMatcher(seen, grammar_of_calls(offer(Mistral, marks={"[TOOL_CALLS]": mark})))
    assert matcher.consume_tokens(text), matcher.get_error()
    assert matcher.is_accepting()
    assert read(Mistral, model.tokenizer.decode(text)) == [("time", {})]


@pytest.mark.parametrize("template", [HERMES, LLAMA, MISTRAL], ids=["hermes", "llama 3", "mistral"])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "time"}}], ids=["any", "one"])
async def test_a_choice_asks_for_calls_by_a_grammar_and_they_are_read(template: str, choice: Any) -> None:
    backend = backend_of(template, "x")
    async with Client(backend) as client:
        for fields in ({"tool_choice": choice}, {"tool_choice": choice, "parallel_tool_calls": False}, {}):
            assert (await client.chat(tools=TOOLS, **fields)).status_code == 200
    many, single, free = (request.grammar for request in backend.requests)
    assert free == ""
    assert len({many, single}) == 2
    assert ("weather" in many) is (choice == "required")
    parser = next(parser for parser in FORMS if parser.marks[0] in template)
    for grammar in (many, single):
        text = next(text for seed in range(99) if (text := written(grammar, random.Random(seed))))
        backend = backend_of(template, text)
        async with Client(backend) as client:
            answer = (await client.chat(tools=TOOLS, tool_choice=choice)).json()["choices"][0]
            chunks = events(await client.chat(tools=TOOLS, tool_choice=choice, stream=True))
        named = [call["function"]["name"] for call in answer["message"]["tool_calls"]]
        assert named == [name for name, _ in read(parser, text)]
        assert answer["finish_reason"] == chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"tool_choice": "required"}, "tool_choice", "there are no tools"),
        ({"tool_choice": "sometimes", "tools": TOOLS}, "tool_choice", '"required" or a function'),
        (
            {"tool_choice": {"type": "function", "function": {"name": "g"}}, "tools": TOOLS},
            "tool_choice",
            "function 'g'",
        ),
        ({"tool_choice": {"type": "tool"}, "tools": TOOLS}, "tool_choice", "tool_choice"),
        ({"tools": [tool(parameters={"type": "strang"})]}, "tools", "tools[0].function.parameters: arguments are an"),
        (
            {"tools": [tool(), tool(name="g", parameters={"properties": {"a": {"type": "strang"}}})]},
            "tools",
            "tools[1].function.parameters: what the answer shall look like cannot be used",
        ),
        ({"tools": TOOLS, "ignore_eos": True}, "ignore_eos", "leave ignore_eos out"),
    ],
)
async def test_a_choice_that_cannot_be_held_is_a_400_that_names_the_place(fields: Any, param: str, says: str) -> None:
    async with Client(backend_of(HERMES, "x")) as client:
        error = error_of(await client.chat(**{"tool_choice": "required"} | fields), 400)
    assert error["param"] == param
    assert says in error["message"]


async def test_a_template_that_does_not_know_tools_is_a_400_where_a_call_has_to_come() -> None:
    for template, says in ((HEAD.replace("tools", "tolls"), "has no tools"), (HEAD, "a form that is not read here")):
        async with Client(backend_of(template, "x")) as client:
            assert says in error_of(await client.chat(tools=TOOLS, tool_choice="required"), 400)["message"]


def test_a_tool_without_parameters_takes_none_and_objects_only() -> None:
    with pytest.raises(InvalidRequest, match=r"tools\[0\]"):
        grammar_of_calls(offer(Hermes, [Tool.model_validate(tool(parameters={"type": "array"}))]))
    assert PARAMETERS["required"] == ["city"]
