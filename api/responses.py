"""Requests to /v1/responses, and the chat that each asks for. Nothing is stored, so each brings its whole conversation.

Items of the input become messages. A message of the assistant and the calls behind it are one message, as in chats.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationError, model_validator

from api import unsupported
from api.errors import invalid_request
from api.generation_body import GenerationBody, Whole
from api.openai import ChatCompletionRequest
from api.shapes import Body, JsonObject
from api.tools import MAX_TOOLS, Function, FunctionName, JsonText, ToolChoice
from protocol.errors import InvalidRequest

Fields = dict[str, Any]


class _Item(Body):
    """A part of the conversation. Answers are sent back as they came, with ids that mean nothing here."""

    dropped = frozenset({"id", "status", "phase"})


class TextPart(Body):
    only = unsupported.ONLY_IN_TEXT_PART
    dropped = frozenset({"logprobs"})

    type: Literal["input_text", "output_text"]
    text: str


def _parts(content: Any) -> Any:
    return [{"type": "input_text", "text": content}] if isinstance(content, str) else content


Parts = Annotated[Annotated[list[TextPart], Field(fail_fast=True)], BeforeValidator(_parts)]


class MessageItem(_Item):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Parts

    def message(self) -> Fields:
        return {"role": self.role, "content": _chat_parts(self.content)}


class FunctionCallItem(_Item):
    type: Literal["function_call"]
    call_id: str
    name: FunctionName
    arguments: JsonText

    def call(self) -> Fields:
        return {"id": self.call_id, "function": {"name": self.name, "arguments": self.arguments}}


class FunctionOutputItem(_Item):
    type: Literal["function_call_output"]
    call_id: str
    output: Parts

    def message(self) -> Fields:
        return {"role": "tool", "tool_call_id": self.call_id, "content": _chat_parts(self.output)}


def _chat_parts(parts: list[TextPart]) -> list[Fields]:
    return [{"type": "text", "text": part.text} for part in parts]


def _kind(item: Any) -> Any:
    return item.get("type") or "message" if isinstance(item, dict) else getattr(item, "type", None)


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")],
    Discriminator(_kind),
]


def _items(given: Any) -> Any:
    """A plain string as one message of the user."""
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


class FunctionTool(Function):
    type: Literal["function"]

    def nested(self) -> Fields:
        """As chats have it, with the function in an object of its own."""
        return {"type": "function", "function": self.model_dump(exclude_unset=True, exclude={"type"})}


class TextFormat(Body):
    """What response_format is in chats, without a level of nesting."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    json_schema: JsonObject | None = Field(default=None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _schema_if_named(self) -> TextFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise InvalidRequest("type json_schema and a schema go together; send both or neither", "text")
        return self

    def nested(self) -> Fields:
        """As chats have it."""
        if self.json_schema is None:
            return {"type": self.type}
        return {"type": self.type, "json_schema": self.model_dump(exclude_none=True, exclude={"type"}, by_alias=True)}


class TextOptions(Body):
    only = unsupported.ONLY_IN_TEXT

    format: TextFormat | None = None


class _Chat(ChatCompletionRequest):
    prompt_field = "input"
    format_field = "text.format"


class ResponsesRequest(GenerationBody):
    only = unsupported.ONLY_IN_RESPONSES
    dropped = unsupported.DROPPED - {"store", "metadata"}

    input: Annotated[list[Item], Field(fail_fast=True, min_length=1), BeforeValidator(_items)]
    instructions: str | None = None
    max_output_tokens: Whole | None = None
    tools: Annotated[list[FunctionTool], Field(fail_fast=True, max_length=MAX_TOOLS)] = Field(default_factory=list)
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    chat_template_kwargs: JsonObject = Field(default_factory=dict)
    metadata: JsonObject = Field(default_factory=dict)
    text: TextOptions = Field(default_factory=TextOptions)

    def chat(self) -> ChatCompletionRequest:
        """The chat whose answer is the response. Raises InvalidRequest."""
        names = [*GenerationBody.model_fields, "tool_choice", "parallel_tool_calls", "chat_template_kwargs"]
        same = {name: getattr(self, name) for name in names if name in self.model_fields_set}
        tools = [tool.nested() for tool in self.tools]
        changed: Fields = {
            "max_completion_tokens": self.max_output_tokens,
            "tools": tools,
            "messages": self._messages(),
        }
        if self.text.format is not None:
            changed["response_format"] = self.text.format.nested()
        try:
            return _Chat.model_validate(same | changed)
        except ValidationError as error:
            raise invalid_request(error.errors()) from None

    def _messages(self) -> list[Fields]:
        messages: list[Fields] = []
        if self.instructions is not None:
            messages.append({"role": "system", "content": self.instructions})
        for item in self.input:
            if not isinstance(item, FunctionCallItem):
                messages.append(item.message())
                continue
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant"})
            messages[-1].setdefault("tool_calls", []).append(item.call())
        return messages
