"""What a caller asks of a model: one request, in the words of docs/api.md, the same over HTTP and gRPC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Required, TypedDict

from protocol.errors import InvalidRequest
from protocol.plan import Speculation

DEFAULT_MAX_TOKENS = 16  # of a completion, as in OpenAI's API; a chat has all the room

Json = Mapping[str, Any]  # an object in the shape that OpenAI's API has for it


class Message(TypedDict, total=False):
    """tool_calls: those that an assistant made. tool_call_id: of the call that a message of role tool answers."""

    role: Required[Literal["system", "developer", "user", "assistant", "tool"]]
    content: str | Sequence[Json] | None
    name: str
    tool_calls: Sequence[Json]
    tool_call_id: str


class Options(TypedDict, total=False):
    """All may be left out, or None. docs/api.md says what they mean; timeout_s is of the whole call, in seconds."""

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool | None
    include_stop_str_in_output: bool | None
    skip_special_tokens: bool | None
    min_tokens: int | None
    logit_bias: Mapping[int, float] | None
    frequency_penalty: float | None
    presence_penalty: float | None
    repetition_penalty: float | None
    response_format: Json | None
    structured_outputs: Json | None
    return_token_sources: bool | None
    speculation: Literal["auto", "off"] | Speculation | None
    priority: int | None
    timeout_s: float | None


class CompletionOptions(Options, total=False):
    echo: bool | None
    add_special_tokens: bool | None
    logprobs: int | None


class ChatOptions(Options, total=False):
    logprobs: bool | None
    top_logprobs: int | None
    tools: Sequence[Json] | None
    tool_choice: Literal["none", "auto", "required"] | Json | None
    parallel_tool_calls: bool | None
    chat_template_kwargs: Json | None
    add_generation_prompt: bool | None
    continue_final_message: bool | None


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, as both transports take it. Either prompt or messages is set. options: fields of OpenAI's body."""

    model: str
    options: Json = field(repr=False)
    prompt: str | Sequence[int] | None = field(default=None, repr=False)
    messages: Sequence[Message] | None = field(default=None, repr=False)


def ask_completion(model: str, prompt: str | Sequence[int], options: CompletionOptions) -> Ask:
    """Raises InvalidRequest for an option that is none."""
    fields = _fields(options, CompletionOptions.__annotations__)
    return Ask(model, {"max_tokens": DEFAULT_MAX_TOKENS} | fields, prompt=prompt)


def ask_chat(model: str, messages: Sequence[Message], options: ChatOptions) -> Ask:
    """Raises InvalidRequest for an option that is none."""
    return Ask(model, _fields(options, ChatOptions.__annotations__), messages=messages)


def _fields(options: Json, known: Json) -> dict[str, Any]:
    if unknown := sorted(options.keys() - known.keys()):
        raise InvalidRequest(f"unknown option {unknown[0]}; leave it out", unknown[0])
    fields = {name: value for name, value in options.items() if value is not None and name != "timeout_s"}
    if isinstance(asked := fields.get("speculation"), Speculation):
        fields["speculation"] = {"depth": asked.depth, "length": asked.length} if asked.length else "off"
    return fields
