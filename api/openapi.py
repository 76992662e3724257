"""The OpenAPI document of the HTTP API: what pydantic knows of the bodies, with the ranges, answers and errors beside.

Limits that depend on a model (its vocabulary, context and chat template) are in no document; whoever breaks one gets a
400 that says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api.answers_schema import ANSWERS, ERROR
from api.backend import Backend
from api.errors import TABLE
from api.generation_body import MAX_CHOICES
from api.jobs import MAX_STOPS
from api.openai import MAX_PROMPTS
from api.tokenize import OF_CHATS
from api.version import version
from protocol.errors import (
    Aborted,
    BodyTooLarge,
    HeadTooLarge,
    InvalidRequest,
    ModelFault,
    NotReady,
    QueueFull,
    TimedOut,
    Unauthenticated,
    UnknownModel,
)
from protocol.logit_rules import MAX_BIAS, MAX_BIASED, MAX_PENALTY, MAX_REPETITION, MAX_TOP, MIN_REPETITION
from protocol.request import SEED_BITS

Json = dict[str, Any]

UNREAD = (Unauthenticated, HeadTooLarge, ModelFault)  # what any request may end with
READ = (InvalidRequest, BodyTooLarge, TimedOut, UnknownModel, NotReady)  # what one with a body may end with besides
MADE = (QueueFull, Aborted)  # and one for an answer
ASKED = (InvalidRequest, UnknownModel, NotReady)  # one that asks for a thing by name
BODILESS = frozenset({"/health", "/version", "/metrics", "/debug/stats", "/debug/router", "/debug/tokens"})
PARTS = frozenset({"content", "output", "input"})  # lists whose only part may be a text by itself
COUNT, TOKEN = {"minimum": 1}, {"minimum": 0}

# By the name of a field, what no validator of pydantic says, for the members of its type.
RANGES: Mapping[str, Mapping[str, Json]] = MappingProxyType(
    {
        "max_tokens": {"integer": COUNT},
        "max_completion_tokens": {"integer": COUNT},
        "max_output_tokens": {"integer": COUNT},
        "min_tokens": {"integer": {"minimum": 0}},
        "temperature": {"number": {"minimum": 0, "maximum": 100}},
        "top_p": {"number": {"exclusiveMinimum": 0, "maximum": 1}},
        "min_p": {"number": {"minimum": 0, "maximum": 1}},
        "seed": {"integer": {"minimum": -(1 << (SEED_BITS - 1)), "maximum": (1 << SEED_BITS) - 1}},
        "frequency_penalty": {"number": {"minimum": -MAX_PENALTY, "maximum": MAX_PENALTY}},
        "presence_penalty": {"number": {"minimum": -MAX_PENALTY, "maximum": MAX_PENALTY}},
        "repetition_penalty": {"number": {"minimum": MIN_REPETITION, "maximum": MAX_REPETITION}},
        "logprobs": {"integer": {"minimum": 0, "maximum": MAX_TOP}},
        "top_logprobs": {"integer": {"minimum": 0, "maximum": MAX_TOP}},
        "stop": {"string": {"minLength": 1}, "array": {"maxItems": MAX_STOPS, "items": {"minLength": 1}}},
        "logit_bias": {
            "object": {
                "maxProperties": MAX_BIASED,
                "propertyNames": {"pattern": "^(0|[1-9][0-9]{0,9})$"},
                "additionalProperties": {"minimum": -MAX_BIAS, "maximum": MAX_BIAS},
            }
        },
        "tokens": {"array": {"items": TOKEN}},
    }
)


@dataclass(frozen=True, slots=True)
class Kind:
    """One of several forms of a body. has: fields that it has; lacks: those that it has not. roles: of a message."""

    has: tuple[str, ...]
    lacks: tuple[str, ...]
    roles: tuple[str, ...] = ()


KINDS: Mapping[str, tuple[Kind, ...]] = MappingProxyType(
    {
        "Message": (
            Kind(("role",), ("tool_calls", "tool_call_id"), ("system", "developer", "user")),
            Kind(("role",), ("tool_call_id",), ("assistant",)),
            Kind(("role", "tool_call_id"), ("tool_calls",), ("tool",)),
        ),
        "TokenizeRequest": (Kind(("prompt",), ("messages", *OF_CHATS)), Kind(("messages",), ("prompt",))),
    }
)


def describe(app: FastAPI, backend: Backend, *, is_keyed: bool) -> None:
    """Makes the application serve this document. is_keyed: whether callers show a key."""

    def document() -> Json:
        made = get_openapi(title="DraftPool", version=version(), routes=app.routes)
        for path, operations in made["paths"].items():
            for operation in operations.values():
                operation["responses"] = _answers(path, "requestBody" in operation, is_keyed=is_keyed)
        schemas = {name: each for name, each in made["components"]["schemas"].items() if "Validation" not in name}
        for name, each in schemas.items():
            _finish(each, backend.names)
            if name in KINDS:
                schemas[name] = _by_kind(each, KINDS[name])
        made["components"] = {"schemas": {**schemas, "Error": ERROR}}
        if is_keyed:
            made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            made["security"] = [{"key": []}]
            for path in ("/health", "/ready"):
                made["paths"][path]["get"]["security"] = []
        return made

    app.openapi = document  # type: ignore[method-assign]


def _answers(path: str, has_body: bool, *, is_keyed: bool) -> Json:
    kinds: list[type[Exception]] = [*UNREAD, *(READ if has_body else () if path in BODILESS else ASKED)]
    kinds += MADE if path.startswith("/v1/") and has_body else ()
    rows = sorted({TABLE[kind].status for kind in kinds if is_keyed or kind is not Unauthenticated})
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    answers: Json = {"200": ANSWERS.get(path, {"description": "OK"})}
    return answers | {str(status): {"description": _codes(status), "content": error} for status in rows}


def _codes(status: int) -> str:
    codes = {row.code for row in TABLE.values() if row.status == status and row.code}
    return ", ".join(sorted(codes)) or "a parameter is invalid"


def _finish(schema: Json, models: Sequence[str]) -> None:
    """A body's schema with its ranges, and with the models of this server."""
    for name, field in schema.get("properties", {}).items():
        if name in PARTS and any(member.get("type") == "array" for member in _members(field)):
            field["anyOf"] = [{"type": "string"}, *field.get("anyOf", [{key: field.pop(key) for key in [*field]}])]
        for member in _members(field):
            for before, after in (("ge", "minimum"), ("le", "maximum")):  # as pydantic writes them behind a validator
                if before in member:
                    member[after] = member.pop(before)
            if member.get("const") is False:
                member["enum"] = [member.pop("const"), 0]  # which Python says are equal
                member.pop("type", None)
            _merge(member, RANGES.get(name, {}).get(str(member.get("type")), {}))
            if name == "model" and member.get("type") == "string":
                member["enum"] = list(models)
            if name == "speculation" and "enum" in member:
                member["enum"] = [*member["enum"], 0]  # which equals false in Python
            if name == "prompt" and schema["title"] == "CompletionRequest":
                _limit_prompts(member)


def _by_kind(schema: Json, kinds: Sequence[Kind]) -> Json:
    return {"title": schema["title"], "anyOf": [_of_kind(schema, kind) for kind in kinds]}


def _of_kind(schema: Json, kind: Kind) -> Json:
    fields = {name: field for name, field in schema["properties"].items() if name not in kind.lacks}
    for name in kind.has:
        given = [member for member in _members(fields[name]) if member.get("type") != "null"]
        fields[name] = given[0] if len(given) == 1 else {"anyOf": given}
    if kind.roles:
        fields["role"] = {"type": "string", "enum": [*kind.roles]}
    absent = {name: {"type": "null"} for name in kind.lacks}
    return {**schema, "properties": fields | absent, "required": [*kind.has]}


def _members(field: Json) -> Iterator[Json]:
    for member in field.get("anyOf", [field]):
        yield from _members(member) if "anyOf" in member else [member]


def _merge(schema: Json, more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, Mapping) and isinstance(schema.get(key), dict):
            _merge(schema[key], value)
        else:
            schema[key] = value


def _limit_prompts(member: Json) -> None:
    """One text, several of them, the tokens of one, or those of several."""
    items = member.get("items", member)
    kind = items.get("type")
    if kind == "string":
        items["minLength"] = 1
    if member.get("type") == "array":
        member["minItems"] = 1
    if member.get("type") == "array" and kind != "integer":
        member["maxItems"] = min(MAX_PROMPTS, MAX_CHOICES)
    if kind == "array":
        items["minItems"] = 1
    numbers = items.get("items", items) if kind == "array" else items
    if numbers.get("type") == "integer":
        numbers["minimum"] = 0
