"""JSON schemas of answers, for the OpenAPI document: the fields that clients may count on."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

Json = dict[str, Any]

TEXT: Json = {"type": "string"}
COUNT: Json = {"type": "integer", "minimum": 0}
ANYTHING: Json = {"type": "object"}


def some(schema: Json) -> Json:
    """That, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def listed(schema: Json) -> Json:
    return {"type": "array", "items": schema}


def said(*values: str) -> Json:
    return {"type": "string", "enum": [*values]}


def fields(more: Json | None = None, **required: Json) -> Json:
    """An object with these fields, and others that may be missing."""
    return {"type": "object", "required": [*required], "properties": {**required, **(more or {})}}


def answer(schema: Json, kind: str = "application/json", **others: Json) -> Json:
    """others: schemas by further kinds of content."""
    return {"description": "OK", "content": {kind: {"schema": schema}, **others}}


ERROR = fields(error=fields(message=TEXT, type=TEXT, param=some(TEXT), code=some(TEXT)))
USAGE = fields(
    prompt_tokens=COUNT,
    completion_tokens=COUNT,
    total_tokens=COUNT,
    prompt_tokens_details=fields(cached_tokens=COUNT),
)
METRICS = fields(
    speculative_decoding=fields(num_spec_steps=COUNT, num_draft_tokens=COUNT, num_accepted_draft_tokens=COUNT)
)
REASON = some(said("stop", "length", "tool_calls"))
CHOICE: Json = {"index": COUNT, "logprobs": some(ANYTHING), "finish_reason": REASON, "seed": {"type": "integer"}}
MESSAGE = fields({"tool_calls": listed(ANYTHING)}, role=said("assistant"), content=some(TEXT), refusal=some(TEXT))
HEAD: Json = {"id": TEXT, "created": COUNT, "model": TEXT, "seed": {"type": "integer"}, "usage": USAGE}
BESIDE: Json = {"metrics": METRICS}
EVENTS: Json = {"text/event-stream": {}}
MODEL = fields(id=TEXT, object=said("model"), created=COUNT, owned_by=TEXT, max_model_len=COUNT)

COMPLETION = fields(BESIDE, **HEAD, object=said("text_completion"), choices=listed(fields(**CHOICE, text=TEXT)))
CHAT = fields(BESIDE, **HEAD, object=said("chat.completion"), choices=listed(fields(**CHOICE, message=MESSAGE)))
RESPONSE = fields(
    BESIDE,
    id=TEXT,
    object=said("response"),
    created_at=COUNT,
    status=said("completed", "incomplete"),
    model=TEXT,
    output=listed(fields(type=said("message", "function_call"), id=TEXT)),
    usage=fields(
        input_tokens=COUNT,
        input_tokens_details=fields(cached_tokens=COUNT),
        output_tokens=COUNT,
        total_tokens=COUNT,
    ),
)

# By path, what a 200 has. /health and /ready have nothing.
ANSWERS: Mapping[str, Json] = MappingProxyType(
    {
        "/v1/completions": answer(COMPLETION, **EVENTS),
        "/v1/chat/completions": answer(CHAT, **EVENTS),
        "/v1/responses": answer(RESPONSE, **EVENTS),
        "/v1/models": answer(fields(object=said("list"), data=listed(MODEL))),
        "/v1/models/{model}": answer(MODEL),
        "/version": answer(fields(version=TEXT)),
        "/tokenize": answer(
            fields(count=COUNT, max_model_len=COUNT, tokens=listed(COUNT), token_strs=some(listed(TEXT)))
        ),
        "/detokenize": answer(fields(prompt=TEXT)),
        "/metrics": answer(TEXT, "text/plain", **{"application/openmetrics-text": {"schema": TEXT}}),
        "/debug/stats": answer(fields(targets=ANYTHING, pool=listed(ANYTHING))),
        "/debug/router": answer(ANYTHING),
        "/debug/tokens": answer(ANYTHING),
        "/debug/trace": answer(fields(traceEvents=listed(ANYTHING))),
    }
)
