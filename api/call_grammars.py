"""Grammars of answers that call: what the parsers of api/call_parsers.py read, with arguments by schema.

Everything but the arguments is spelled as templates spell it, so that a model has hardly a choice outside of them. A
mark that is a token may be that token or its text: a checkpoint that hardly knows the token spells the mark, and one
that was led to begin with the other does not know how to end.

Where the model chooses whether to call, any text may come up to what opens a call: a mark that is a token, or the text
of a mark and a brace behind it. A mark that is only spoken of stays text. An answer ends behind its calls.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
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
Arguments = Callable[[Tool, int], dict[str, Any]]  # the schema of a tool's arguments
SPACE = r"[ \t\r\n]"
SPACES = 4  # at most, where nothing else but a call may come: or a model that wants something else goes on for ever


@dataclass(frozen=True, slots=True)
class CallForm:
    """What stands before the first call, around each, between two, and behind the last; and the key of arguments.

    skipped: a regex of the characters that may stand between a mark and the first call. is_bare: a text may also begin
    with a call, without a mark.
    """

    first: str = ""
    before: str = ""
    behind: str = ""
    between: str = ""
    last: str = ""
    key: str = "arguments"
    skipped: str = SPACE
    is_bare: bool = False


FORMS: Mapping[type, CallForm] = MappingProxyType(
    {
        Hermes: CallForm(before="<tool_call>\n", behind="\n</tool_call>", between="\n"),
        Llama3: CallForm(between="; ", key="parameters", is_bare=True),
        Mistral: CallForm(first="[TOOL_CALLS] [", between=", ", last="]", skipped=r"[ \t\r\n\[]"),
    }
)


@dataclass(frozen=True, slots=True)
class Offer:
    """What may be called, and how.

    tools: by their place in the request. marks: the parser's that are tokens, with their ids. many: any number of
    calls, or one. free_tokens: those that are no text, and may stand before the first call.
    """

    parser: type[CallParser]
    tools: Mapping[int, Tool]
    marks: Mapping[str, int]
    many: bool
    free_tokens: Sequence[int] = ()

    @property
    def form(self) -> CallForm:
        return FORMS[self.parser]


def grammar_of_calls(offer: Offer) -> str:
    """Of an answer that has to call.

    Raises InvalidRequest, which names the tool, for a schema that cannot be held, as the other two do.
    """
    return checked(_lark("start: calls", *_calls(offer, _arguments)), "tools")


def grammar_of_choice(offer: Offer) -> str:
    """Of an answer that may say anything, and then may call. Arguments of a tool that is not strict are any object."""
    free = f"TEXT | <[{_ranges(offer.free_tokens)}]>" if offer.free_tokens else "TEXT"
    end = r' "\n"?' if offer.many else ""  # where another call may come a line may end, and none has to come then
    start = f"start: ({free})* (opened more {_spelled(offer, offer.form.last)}{end})?"
    rules = [start, r"TEXT: /(.|\n)+/", *_openings(offer), *_calls(offer, _strict_arguments)]
    return checked(_lark(*rules), "tools")


def grammar_beside(offer: Offer, schema: dict[str, Any]) -> str:
    """Of an answer that calls, or says what a JSON Schema has, which can be held."""
    said = f"said: %json {json.dumps(schema | {'x-guidance': dict(WHITESPACE)})}"
    return checked(_lark("start: calls | said", said, *_calls(offer, _strict_arguments)), "tools")


def _lark(*rules: str) -> str:
    return str(LLMatcher.grammar_from_lark("\n".join(rules)))


def _openings(offer: Offer) -> list[str]:
    """How a model that may say anything begins its first call."""
    form, mark = offer.form, offer.parser.marks[0]
    rules = [rf"spelled[lazy]: /(.|\n)*{re.escape(mark)}{form.skipped}*\{{/"]
    ways = ["spelled rest"]
    if mark in offer.marks:
        ways.append(f'<[{offer.marks[mark]}]> SKIPPED "{{" rest')
        rules.append(f"SKIPPED: /{form.skipped}{{0,{SPACES}}}/")
    for place, tool in offer.tools.items() if form.is_bare else ():
        name = re.escape(json.dumps(tool.function.name))
        rules.append(rf'named_{place}[lazy]: /{SPACE}*\{{{SPACE}*"name"{SPACE}*:{SPACE}*{name}/')
        ways.append(f"named_{place} known_{place}")
    return [f"opened: {' | '.join(ways)}", *rules]


def _calls(offer: Offer, arguments: Arguments) -> list[str]:
    """Calls as templates spell them, and the parts of one: `rest` stands behind its brace, `known_0` behind a name."""
    form = offer.form
    kinds = " | ".join(f"call_{place}" for place in offer.tools)
    rules = [
        f"calls: {_spelled(offer, form.first)} call more {_spelled(offer, form.last)}",
        f"more: ({_spelled(offer, form.between)} call)*" if offer.many else 'more: ""',
        f'call: {_spelled(offer, form.before)} "{{" rest',
        f"rest: ({kinds}) {_spelled(offer, form.behind)}",
    ]
    for place, tool in offer.tools.items():
        name, key = (json.dumps(text) for text in (f'"name": {json.dumps(tool.function.name)}', f', "{form.key}": '))
        rules.append(f"call_{place}: {name} known_{place}")
        rules.append(f'known_{place}: {key} arguments_{place} "}}"')
        rules.append(f"arguments_{place}: %json {json.dumps(arguments(tool, place))}")
    return rules


def _spelled(offer: Offer, text: str) -> str:
    """A text with its marks, each as the token or in characters."""
    marks = offer.marks
    pieces = re.split(f"({'|'.join(map(re.escape, marks))})", text) if marks else [text]
    return " ".join(
        f"(<[{marks[each]}]> | {json.dumps(each)})" if each in marks else json.dumps(each) for each in pieces if each
    )


def _ranges(ids: Sequence[int]) -> str:
    """As llguidance writes sets of tokens: 3,7-9."""
    runs: list[list[int]] = []
    for each in sorted(ids):
        if runs and runs[-1][-1] == each - 1:
            runs[-1].append(each)
        else:
            runs.append([each])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _strict_arguments(tool: Tool, place: int) -> dict[str, Any]:
    return _arguments(tool, place) if tool.function.strict else {"type": "object", "x-guidance": dict(WHITESPACE)}


def _arguments(tool: Tool, place: int) -> dict[str, Any]:
    """The schema of a tool's arguments, an object in any case."""
    field, given = f"tools[{place}].function.parameters", tool.function.parameters
    if given is None:
        return dict(NOTHING)
    schema = {"type": "object"} | given
    if schema["type"] != "object":
        raise InvalidRequest(f"{field}: arguments are an object; send a schema of type object", "tools")
    try:
        checked(of_json(schema, "tools"), "tools")
    except InvalidRequest as error:
        raise InvalidRequest(f"{field}: {error}", "tools") from None
    return schema | {"x-guidance": dict(WHITESPACE)}
