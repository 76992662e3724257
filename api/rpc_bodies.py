"""The HTTP bodies that mean what messages over gRPC mean. Whether they make sense is for the bodies to say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

from pydantic import ValidationError

from api.errors import invalid_request
from api.openai import ChatCompletionRequest, CompletionRequest
from api.prompts import MAX_BODY_BYTES, too_large
from protocol.errors import InvalidRequest
from protocol.pb import inference_pb2 as pb

Fields = dict[str, Any]
_GRAMMARS: Mapping[str, str] = MappingProxyType(
    {"json_schema": "json", "json_object": "json_object", "regex": "regex", "choice": "choice", "lark": "grammar"}
)  # the names in structured_outputs
_SPELLED_APART = frozenset({"text", "token_ids", *_GRAMMARS})


class CallBody(CompletionRequest):
    """The fields of a GenerateRequest."""

    default_max_tokens: ClassVar[int | None] = None


Body = TypeVar("Body", CallBody, ChatCompletionRequest)


def generate_body(message: pb.GenerateRequest) -> CallBody:
    """Raises InvalidRequest."""
    _check_size(message)
    kind = message.WhichOneof("prompt")
    if kind is None:
        raise InvalidRequest("prompt is missing; send text or token_ids", "prompt")
    prompt = message.text if kind == "text" else [list(message.token_ids.ids)]
    return _validated(CallBody, _options(message) | {"prompt": prompt})


def chat_body(message: pb.ChatRequest) -> ChatCompletionRequest:
    """Raises InvalidRequest."""
    _check_size(message)
    if (kind := message.options.WhichOneof("prompt")) is not None:
        raise InvalidRequest(f"options.{kind} is a prompt, and the messages are one; leave it out", "prompt")
    fields = _options(message.options) | {"messages": [*map(_message, message.messages)]} | _chat_options(message)
    if "logprobs" in fields:
        fields |= {"logprobs": True, "top_logprobs": fields["logprobs"]}
    return _validated(ChatCompletionRequest, fields)


def _chat_options(message: pb.ChatRequest) -> Fields:
    """What a chat has beside its messages and the options of any call."""
    names = ("tool_choice", "parallel_tool_calls", "add_generation_prompt", "continue_final_message")
    fields = {field.name: value for field, value in message.ListFields() if field.name in names}
    if message.WhichOneof("choice") == "tool_choice_function":
        fields["tool_choice"] = {"type": "function", "function": {"name": message.tool_choice_function}}
    if text := message.chat_template_kwargs:
        fields["chat_template_kwargs"] = _json(text, "chat_template_kwargs")
    return fields | {"tools": [*map(_tool, message.tools)]}


def _message(message: pb.ChatMessage) -> Fields:
    fields: Fields = {"role": message.role, "content": message.content}
    fields |= {name: getattr(message, name) for name in ("name", "tool_call_id") if message.HasField(name)}
    return fields | {"tool_calls": [*map(_call, message.tool_calls)]}


def _call(call: pb.ToolCall) -> Fields:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _tool(tool: pb.Tool) -> Fields:
    function = {field.name: value for field, value in tool.ListFields()} | {"name": tool.name}
    if tool.HasField("parameters"):
        function["parameters"] = _json(tool.parameters, "tools")
    return {"type": "function", "function": function}


def _json(text: str, place: str) -> Any:
    """Raises InvalidRequest."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidRequest(f"a text in {place} is not JSON; send an object as text", place) from None


def _check_size(message: pb.GenerateRequest | pb.ChatRequest) -> None:
    if (size := message.ByteSize()) > MAX_BODY_BYTES:
        raise InvalidRequest(too_large(str(size), MAX_BODY_BYTES))


def _options(message: pb.GenerateRequest) -> Fields:
    """The fields of the same HTTP body but for the prompt."""
    fields: Fields = {field.name: value for field, value in message.ListFields()}
    fields = {name: value for name, value in fields.items() if name not in _SPELLED_APART}
    if (way := message.WhichOneof("grammar")) is not None:
        asked_for = list(message.choice.texts) if way == "choice" else getattr(message, way)
        fields["structured_outputs"] = {_GRAMMARS[way]: asked_for}
    fields |= {"stop": list(message.stop), "stop_token_ids": list(message.stop_token_ids)}
    fields["logit_bias"] = {str(token): bias for token, bias in message.logit_bias.items()}
    if asked := fields.get("speculation"):
        fields["speculation"] = {"depth": asked.depth, "length": asked.length} if asked.length else "off"
    return fields


def _validated(kind: type[Body], fields: Fields) -> Body:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise invalid_request(error.errors()) from None
