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
    """strict: a call that the model chooses to make holds to the schema, as one that has to come does in any case."""

    dropped = unsupported.DROPPED_IN_FUNCTION

    name: FunctionName
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool = False


class Tool(Body):
    dropped = unsupported.DROPPED_IN_MESSAGE

    type: Literal["function"]
    function: Function

    def definition(self) -> dict[str, Any]:
        """The tool as a template gets it, in the order of OpenAI's documentation."""
        return self.model_dump(exclude_unset=True, exclude={"function": {"strict"}})


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


class NamedFunction(Body):
    name: FunctionName


class NamedChoice(Body):
    """The one function that has to be called."""

    type: Literal["function"]
    function: NamedFunction


def _choice(choice: Any) -> Any:
    """A named function as chats have it, also where it comes as Responses have it."""
    if isinstance(choice, str) and choice not in ("none", "auto", "required"):
        raise InvalidRequest('tool_choice is "none", "auto", "required" or a function', "tool_choice")
    if isinstance(choice, dict) and set(choice) == {"type", "name"}:
        return {"type": choice["type"], "function": {"name": choice["name"]}}
    return choice


ToolChoice = Annotated[Literal["none", "auto", "required"] | NamedChoice, BeforeValidator(_choice)]


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
