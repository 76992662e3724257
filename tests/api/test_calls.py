"""Calls found in the text of an answer, however it is cut, in each form that models write."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from api.call_parsers import Hermes, Llama3, Mistral, Parser, parser_of
from api.calls import BegunCall, Calling, Text

NAMES = frozenset({"find", "add"})
Told = list[str | list[str]]  # words, and calls as name and arguments


def told(parser: type[Parser], pieces: Iterable[str], max_calls: int | None = None) -> Told:
    """What an answer tells that comes in these pieces."""
    reader = Calling(parser, NAMES, max_calls).reader()
    out: Told = []
    for said in [*(said for piece in pieces for said in reader.push(piece)), *reader.push("", last=True)]:
        if isinstance(said, BegunCall):
            out.append([said.name, ""])
            assert said.index == sum(isinstance(each, list) for each in out) - 1
        elif isinstance(said, Text):
            if out and isinstance(out[-1], str):
                out[-1] += said.text
            else:
                out.append(said.text)
        else:
            call = [each for each in out if isinstance(each, list)][said.index]
            call[1] += said.text
    return out


FIND = '{"name": "find", "arguments": {"what": "a }] \\" </tool_call> {"}}'
ADD = '{"name": "add", "arguments": {"a": [1, {"b": null}], "c": {}}}'
FIND_TOLD = ["find", '{"what": "a }] \\" </tool_call> {"}']
ADD_TOLD = ["add", '{"a": [1, {"b": null}], "c": {}}']
LOST = '{"name": "nobody", "arguments": {}}'


def llama(call: str) -> str:
    return call.replace('"arguments"', '"parameters"')


CASES: list[tuple[type[Parser], str, Told]] = [
    (Hermes, f"<tool_call>\n{FIND}\n</tool_call>", [FIND_TOLD]),
    (Hermes, f"<tool_call>{FIND}</tool_call>\n<tool_call>\n{ADD}\n</tool_call>\n", [FIND_TOLD, ADD_TOLD]),
    (Hermes, f"I look.\n\n<tool_call>\n{FIND}\n</tool_call>", ["I look.", FIND_TOLD]),
    (Hermes, f"<tool_call>{ADD}</tool_call> Done. ", [ADD_TOLD, " Done."]),
    (Hermes, f"I look.\n<tool_call>{ADD}</tool_call>Done", ["I look.", ADD_TOLD, "Done"]),
    (Hermes, f"<tool_call>{ADD} </to you", [ADD_TOLD, " </to you"]),
    (Hermes, f"<tool_call>\n{FIND[:-1]}", [FIND_TOLD]),
    (Hermes, f"<tool_call>\n{FIND[:-3]}", [["find", FIND_TOLD[1][:-2]]]),
    (Hermes, f"<tool_call>\n{FIND}\n</tool_c", [FIND_TOLD]),
    (Hermes, f"<tool_call>\n{FIND}}}\n</tool_call>", [FIND_TOLD, "}\n</tool_call>"]),
    (Hermes, '<tool_call>{"arguments": {"a": 1}, "name": "add"}</tool_call>', [["add", '{"a": 1}']]),
    (Hermes, '<tool_call>{"id": -1.5e3, "x": [true], "name":"add" ,"arguments":{}}</tool_call>', [["add", "{}"]]),
    (Hermes, '<tool_call>{"name": "a\\u0064d", "arguments": {}}</tool_call>', [["add", "{}"]]),
    (Hermes, f"<tool_call>\n{LOST}\n</tool_call>", [f"<tool_call>\n{LOST}\n</tool_call>"]),
    (Hermes, "<tool_call> and </tool_call> are marks ", ["<tool_call> and </tool_call> are marks "]),
    (Hermes, f"<<tool_call><tool_call>{ADD}</tool_call>", ["<<tool_call>", ADD_TOLD]),
    (Hermes, '<tool_call>{"name": "add"}</tool_call>', ['<tool_call>{"name": "add"}</tool_call>']),
    (Hermes, '<tool_call>{"name": "add", "arguments": "x"}', ['<tool_call>{"name": "add", "arguments": "x"}']),
    (Hermes, '<tool_call>{"name": }</tool_call>', ['<tool_call>{"name": }</tool_call>']),
    (Hermes, "<tool_call>{}</tool_call>", ["<tool_call>{}</tool_call>"]),
    (Hermes, "a < b\n", ["a < b\n"]),
    (Hermes, "one <tool_ca", ["one <tool_ca"]),
    (Hermes, '<tool_call>{"name": "ad', ['<tool_call>{"name": "ad']),
    (Hermes, FIND, [FIND]),
    (Hermes, "", []),
    (Hermes, " \n", [" \n"]),
    (Llama3, llama(FIND), [FIND_TOLD]),
    (Llama3, f"\n{FIND}; {llama(ADD)}", [FIND_TOLD, ADD_TOLD]),
    (Llama3, f"<|python_tag|>{llama(ADD)}", [ADD_TOLD]),
    (Llama3, f"I look. <|python_tag|>{llama(ADD)}\n{llama(FIND)}", ["I look.", ADD_TOLD, FIND_TOLD]),
    (Llama3, f'{{"type": "function", {llama(ADD)[1:]}', [ADD_TOLD]),
    (Llama3, llama(LOST), [llama(LOST)]),
    (Llama3, f"It is {llama(ADD)}", [f"It is {llama(ADD)}"]),
    (Llama3, '{"a": 1} is JSON ', ['{"a": 1} is JSON ']),
    (Llama3, "<|python_tag|>print(1)", ["<|python_tag|>print(1)"]),
    (Llama3, f"{llama(ADD)} is it", [ADD_TOLD, " is it"]),
    (Mistral, f"[TOOL_CALLS] [{FIND}]", [FIND_TOLD]),
    (Mistral, f"[TOOL_CALLS][{FIND}, {ADD}] ", [FIND_TOLD, ADD_TOLD]),
    (Mistral, f"I look.[TOOL_CALLS] [{ADD}] Done", ["I look.", ADD_TOLD, " Done"]),
    (Mistral, f"[TOOL_CALLS] [{LOST}]", [f"[TOOL_CALLS] [{LOST}]"]),
    (Mistral, "[TOOL_CALLS] is a mark", ["[TOOL_CALLS] is a mark"]),
    (Mistral, f"[{ADD}]", [f"[{ADD}]"]),
]


def name_of(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else repr(value)[:50]


@pytest.mark.parametrize(("parser", "text", "expected"), CASES, ids=name_of)
def test_calls_are_found_and_the_rest_is_text_wherever_the_text_is_cut(
    parser: type[Parser], text: str, expected: Told
) -> None:
    assert told(parser, [text]) == expected
    assert told(parser, text) == expected
    for at in range(len(text)):
        for size in (0, 1, 5):
            assert told(parser, [text[:at], text[at : at + size], text[at + size :]]) == expected, (at, size)


SCRAPS = ["<tool_call>", "</tool_call>", "\n", " ", "<", "<tool", "{", "}", "]", "[", ";", ",", '"', "\\", "word"]
SCRAPS += ["[TOOL_CALLS]", "[TOOL", "<|python_tag|>", "<|", '"name": "add"', '"arguments": {', '{"name": "find", ']
SCRAPS += [FIND, ADD, LOST, llama(ADD), f"<tool_call>\n{ADD}\n</tool_call>", f"[TOOL_CALLS] [{ADD}, {FIND}]"]


def cuts(text: str, rng: random.Random) -> Iterator[str]:
    at = 0
    while at < len(text):
        size = rng.choice([1, 1, 2, 3, 9, 40])
        yield text[at : at + size]
        at += size


@pytest.mark.parametrize("parser", [Hermes, Llama3, Mistral])
@pytest.mark.parametrize("seed", range(100))
def test_any_text_tells_the_same_however_it_is_cut(parser: type[Parser], seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(8):
        text = "".join(rng.choices(SCRAPS, k=rng.randint(1, 9)))
        whole = told(parser, [text])
        for _ in range(4):
            assert told(parser, cuts(text, rng)) == whole, text


def hermes_at_once(text: str) -> Told:
    """The obvious version for well-formed text: every block that holds a call of a known function."""
    out: Told = []
    at = 0
    for block in re.finditer(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", text, re.DOTALL):
        call = json.loads(block[1])
        if call["name"] in NAMES:
            words, at = text[at : block.start()].rstrip(), block.end()
            out += [words] if words else []
            out.append([call["name"], json.dumps(call["arguments"])])
    words = text[at:] if not out else text[at:].rstrip()
    return out + ([words] if words else [])


@pytest.mark.parametrize("seed", range(100))
def test_well_formed_answers_tell_what_the_obvious_reading_tells(seed: int) -> None:
    rng = random.Random(seed)
    parts = []
    for _ in range(rng.randint(1, 5)):
        arguments = {
            rng.choice("abc"): rng.choice([1, "x", None, [{}], {"d": "é\n"}, "\\", 'q\\"'])
            for _ in range(rng.randint(0, 3))
        }
        call = json.dumps({"name": rng.choice(["find", "add", "nobody"]), "arguments": arguments})
        parts.append(rng.choice([f"<tool_call>\n{call}\n</tool_call>", "some words", "a < b {", "\n", " \n "]))
    text = "".join(parts)
    assert told(Hermes, cuts(text, rng)) == hermes_at_once(text)


def test_arguments_pass_on_while_the_model_still_writes_them() -> None:
    reader = Calling(Hermes, NAMES, None).reader()
    assert reader.push('<tool_call>{"name": "find", ') == []
    begun, *more = reader.push('"arguments": {"what": "a')
    assert isinstance(begun, BegunCall)
    assert (begun.name, [each.text for each in more if not isinstance(each, BegunCall)]) == ("find", ['{"what": "a'])
    assert re.fullmatch("[a-z0-9]{9}", begun.id)


@pytest.mark.parametrize(
    ("parser", "text"),
    [
        (Hermes, f"<tool_call>{FIND}</tool_call> and <tool_call>{ADD}</tool_call>"),
        (Llama3, f"{FIND};{ADD}"),
        (Mistral, f"[TOOL_CALLS][{FIND},{ADD}]"),
    ],
    ids=name_of,
)
def test_only_the_first_call_stays_if_no_more_are_wanted(parser: type[Parser], text: str) -> None:
    calls = [each for each in told(parser, text, max_calls=1) if isinstance(each, list)]
    assert calls == [FIND_TOLD]


def test_the_template_tells_how_a_model_writes_calls() -> None:
    assert parser_of("{{ '<tool_call>' }}") is Hermes
    assert parser_of("{{ '[TOOL_CALLS] [' }}") is Mistral
    assert parser_of('{"name": function name, "parameters": dictionary of argument name and its value}') is Llama3
    assert parser_of("<tool_call>\n<function=example_function_name>") is None
    assert parser_of("[TOOL_CALLS]{{ name }}[ARGS]{{ arguments }}") is None
    assert parser_of("{{ message.content }}") is None
