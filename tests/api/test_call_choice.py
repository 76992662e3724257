"""Calls that the model chooses to make: any text may come before them, and behind what opens them they are shaped."""

from __future__ import annotations

import random
import re

import pytest
from jsonschema import Draft202012Validator
from llguidance import LLMatcher, LLTokenizer

from api.call_grammars import FORMS, grammar_beside, grammar_of_choice
from api.call_parsers import Hermes, Llama3, Mistral
from api.calls import CallParser
from tests.api.call_offers import OFFERED, PARSERS, SCHEMAS, SEEN, ids_of, offer, read, strict, written
from tests.api.tool_cases import mistral_card

OPENING = {
    Hermes: r"<tool_call>\s*\{",
    Llama3: r'<\|python_tag\|>\s*\{|^\s*\{\s*"name"\s*:\s*"(weather|wait|time)"',
    Mistral: r"\[TOOL_CALLS\][\s\[]*\{",
}
PIECES = [
    "{",
    '"',
    "\n",
    " ",
    "name",
    ":",
    "time",
    "weather",
    "<",
    "tool_",
    "call>",
    "[TOOL",
    "_CALLS]",
    "|>",
    "🙂",
    "é",
]
PIECES += ["<tool_call>", "[TOOL_CALLS]", "<|python_tag|>", '{"name": "wait"', "["]
PIECES += ["<tool_call>{", "[TOOL_CALLS] [{", "<|python_tag|>\n{"]
FORM = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}


def takes(grammar: str, text: str) -> tuple[bool, bool]:
    """Whether the grammar takes the text, and whether it may end there."""
    matcher, ids = LLMatcher(SEEN, grammar, log_level=0), ids_of(text)
    return matcher.try_consume_tokens(ids) == len(ids), matcher.is_accepting()


@PARSERS
@pytest.mark.parametrize("seed", range(8))
def test_any_text_may_come_in_which_no_call_is_opened(parser: type[CallParser], seed: int) -> None:
    grammar, rng, num_free = grammar_of_choice(offer(parser, strict())), random.Random(seed), 0
    for _ in range(100):
        text = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 12)))
        opening = re.search(OPENING[parser], text)
        assert takes(grammar, text[: opening.end()] if opening else text) == (True, opening is None), text
        num_free += opening is None
    assert 10 < num_free < 100


def opened(parser: type[CallParser]) -> list[str]:
    """Texts that end as a call is opened."""
    if parser is Llama3:
        return ["<|python_tag|>{", "<|python_tag|>\n {", ' {"name" : "wait"', '{"name": "weather"']
    return [f"{parser.marks[0]}{space}{{" for space in ("", "\n", " \n ")] + (["[TOOL_CALLS] [{"] * (parser is Mistral))


@PARSERS
@pytest.mark.parametrize("many", [True, False])
def test_what_is_opened_is_calls_that_hold_to_the_schemas_of_strict_tools(parser: type[CallParser], many: bool) -> None:
    grammar = grammar_of_choice(offer(parser, [*strict(OFFERED[:2]), OFFERED[2]], many=many))
    rng, numbers, names, others = random.Random(1), set[int](), set[str](), 0
    for begin in [begin for begin in opened(parser) for _ in range(20)]:
        if (text := written(grammar, rng, begin)) is None:
            continue
        calls = read(parser, text)
        for name, arguments in calls:
            assert isinstance(arguments, dict)
            others += name == "time" and bool(arguments)
            if name != "time":
                Draft202012Validator(SCHEMAS[name]).validate(arguments)
        names |= {name for name, _ in calls}
        numbers.add(len(calls))
    assert {"weather", "wait"} <= names
    assert numbers <= ({*range(1, 20)} if many else {1})


def test_arguments_of_a_tool_that_is_not_strict_are_any_object() -> None:
    for parser, form in FORMS.items():
        begin = opened(parser)[0] + f'"name": "weather", "{form.key}": '
        for tools, may in ((OFFERED, True), (strict(), False), ([OFFERED[0], *strict(OFFERED[1:])], True)):
            grammar = grammar_of_choice(offer(parser, tools))
            assert takes(grammar, begin + '{"x": [1]')[0] is may
            assert takes(grammar, begin + '{"at": "oslo"}')[0]
            assert not takes(grammar, begin + "[")[0]


def test_behind_its_calls_an_answer_ends() -> None:
    for parser, form in FORMS.items():
        call = f'"name": "time", "{form.key}": {{}}}}{form.behind}'
        more = f'{form.between}{form.before}{{"name": "time", "{form.key}": {{}}}}{form.behind}'
        for many in (True, False):
            grammar = grammar_of_choice(offer(parser, many=many))
            text = f"I look. {opened(parser)[0]}{call}"
            assert takes(grammar, text + form.last) == (True, True)
            assert takes(grammar, text + form.last + "\n") == (many, True)
            assert not takes(grammar, text + form.last + "\n\n")[0], "white space may not go on for ever"
            assert takes(grammar, text + more + form.last) == (many, True) or not many
            assert takes(grammar, text + more)[0] is many
            assert not takes(grammar, text + form.last + " so")[0]


def test_a_mark_that_is_a_token_opens_a_call_and_other_tokens_that_are_no_text_may_come_before() -> None:
    model = mistral_card()
    mark, bos = model.tokenizer.convert_tokens_to_ids(["[TOOL_CALLS]", "<|bos|>"])
    seen = LLTokenizer(model.tokenizer.backend_tokenizer.to_str(), eos_token=[model.eos_token_ids[0]])
    call = model.tokenizer.encode(' [{"name": "time", "arguments": {}}]', add_special_tokens=False)
    words = model.tokenizer.encode("so", add_special_tokens=False)
    grammar = grammar_of_choice(offer(Mistral, strict(), {"[TOOL_CALLS]": mark}, free_tokens=[bos]))

    def ends(*ids: int) -> bool:
        matcher = LLMatcher(seen, grammar, log_level=0)
        return matcher.try_consume_tokens([*ids]) == len(ids) and matcher.is_accepting()

    assert ends(*words, bos, *words, mark, *call)
    assert ends(bos, *words, bos)
    assert not ends(mark, *words)
    space = model.tokenizer.encode(" " * 5, add_special_tokens=False)
    assert LLMatcher(seen, grammar, log_level=0).try_consume_tokens([mark, *space]) <= len(space)
    assert not ends(mark)
    bare = grammar_of_choice(offer(Mistral, strict(), {"[TOOL_CALLS]": mark}))
    assert LLMatcher(seen, bare, log_level=0).try_consume_tokens([bos]) == 0


@PARSERS
def test_an_answer_calls_or_has_the_form_that_is_asked_for(parser: type[CallParser]) -> None:
    grammar, form = grammar_beside(offer(parser, strict(), many=True), FORM), FORMS[parser]
    call = f'{form.first}{form.before}{{"name": "weather", "{form.key}": {{"at": "%s"}}}}{form.behind}{form.last}'
    assert takes(grammar, '{"ok": true}') == (True, True)
    assert takes(grammar, call % "oslo") == (True, True)
    for text in (call % "bonn", '{"ok": 1', "So: ", "{}"):
        assert not takes(grammar, text)[0]
