"""Tools in requests, in OpenAI's shapes: functions that a model may call, and calls that it made before."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from api import unsupported
from api.shapes import Body, JsonObject
from protocol.errors import InvalidRequest

MAX_TOOLS = 128
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class Function(Body):
    """`strict` is dropped: without a grammar the model's arguments are as good as the model."""

    dropped = unsupported.DROPPED_IN_FUNCTION

    name: FunctionName
    description: str | None = None
    parameters: JsonObject | None = None


class Tool(Body):
    dropped = unsupported.DROPPED_IN_MESSAGE

    type: Literal["function"]
    function: Function

    def definition(self) -> dict[str, Any]:
        """The tool as a template gets it, in the order of OpenAI's documentation."""
        return self.model_dump(exclude_unset=True)


def _distinct(tools: list[Tool]) -> list[Tool]:
    names = [tool.function.name for tool in tools]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InvalidRequest(f"tools have two functions {twice!r}; give each a name of its own", "tools")
    return tools


Tools = Annotated[list[Tool], Field(fail_fast=True, max_length=MAX_TOOLS), AfterValidator(_distinct)]


def _arguments(text: Any) -> Any:
    """The arguments that a text in JSON has; none for an empty one."""
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text or "{}")
    except (ValueError, RecursionError):
        raise InvalidRequest("the arguments of a call are not JSON; send an object as text") from None


def _choice(choice: Any) -> Any:
    if choice in ("none", "auto"):
        return choice
    raise InvalidRequest(
        'tool_choice can be "auto" or "none"; to make a model call a function takes a grammar, which this server does '
        "not have yet",
        "tool_choice",
    )


ToolChoice = Annotated[Literal["none", "auto"], BeforeValidator(_choice)]


JsonText = Annotated[JsonObject, BeforeValidator(_arguments)]


class CalledFunction(Body):
    name: FunctionName
    arguments: JsonText


class ToolCall(Body):
    """A call that the model made."""

    dropped = unsupported.DROPPED_IN_MESSAGE | {"index"}

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
