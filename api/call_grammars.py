"""Grammars of answers that have to call: what the parsers of api/call_parsers.py read, with arguments by schema.

Everything but the arguments is spelled as templates spell it, so that a model has hardly a choice outside of them. A
mark that is a token may be that token or its text: a checkpoint that hardly knows the token spells the mark, and one
that was led to begin with the other does not know how to end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from llguidance import LLMatcher

from api.call_parsers import Hermes, Llama3, Mistral
from api.calls import CallParser
from api.structured import WHITESPACE, checked, of_json
from api.tools import Tool
from protocol.errors import InvalidRequest

NOTHING: Mapping[str, Any] = MappingProxyType({"type": "object", "properties": {}, "additionalProperties": False})


@dataclass(frozen=True, slots=True)
class CallForm:
    """What stands before the first call, around each, between two, and behind the last; and the key of arguments."""

    first: str = ""
    before: str = ""
    behind: str = ""
    between: str = ""
    last: str = ""
    key: str = "arguments"


FORMS: Mapping[type, CallForm] = MappingProxyType(
    {
        Hermes: CallForm(before="<tool_call>\n", behind="\n</tool_call>", between="\n"),
        Llama3: CallForm(between="; ", key="parameters"),
        Mistral: CallForm(first="[TOOL_CALLS] [", between=", ", last="]"),
    }
)


def grammar_of_calls(parser: type[CallParser], tools: Sequence[Tool], marks: Mapping[str, int], *, many: bool) -> str:
    """One call of these tools, or with `many` any number. marks: the parser's that are tokens, with their ids.

    Raises InvalidRequest, which names the tool, for a schema that cannot be held.
    """
    form = FORMS[parser]

    def quoted(text: str) -> str:
        pieces = re.split(f"({'|'.join(map(re.escape, marks))})", text) if marks else [text]
        return " ".join(
            f"(<[{marks[each]}]> | {json.dumps(each)})" if each in marks else json.dumps(each)
            for each in pieces
            if each
        )

    more = f" ({quoted(form.between)} call)*" if many else ""
    rules = [f"start: {quoted(form.first)} call{more} {quoted(form.last)}"]
    names = " | ".join(f"call_{index}" for index in range(len(tools)))
    rules.append(f"call: {quoted(form.before)} ({names}) {quoted(form.behind)}")
    for index, tool in enumerate(tools):
        head = json.dumps(f'{{"name": {json.dumps(tool.function.name)}, "{form.key}": ')
        rules.append(f'call_{index}: {head} arguments_{index} "}}"')
        rules.append(f"arguments_{index}: %json {json.dumps(_arguments(tool, index))}")
    return checked(str(LLMatcher.grammar_from_lark("\n".join(rules))), "tools")


def _arguments(tool: Tool, index: int) -> dict[str, Any]:
    """The schema of a tool's arguments, an object in any case."""
    place, given = f"tools[{index}].function.parameters", tool.function.parameters
    if given is None:
        return dict(NOTHING)
    schema = {"type": "object"} | given
    if schema["type"] != "object":
        raise InvalidRequest(f"{place}: arguments are an object; send a schema of type object", "tools")
    try:
        checked(of_json(schema, "tools"), "tools")
    except InvalidRequest as error:
        raise InvalidRequest(f"{place}: {error}", "tools") from None
    return schema | {"x-guidance": dict(WHITESPACE)}
