"""Maps errors to what callers see over HTTP (status, OpenAI type and code) and gRPC.

An exception that is not in the table is a fault of the server: the caller gets the request id and nothing else.
"""

from __future__ import annotations

import logging
import reprlib
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from types import MappingProxyType
from typing import Any

from grpc import StatusCode
from pydantic_core import ErrorDetails

from protocol.errors import (
    Aborted,
    BodyTooLarge,
    HeadTooLarge,
    InvalidRequest,
    ModelFault,
    NotReady,
    PromptTooLong,
    QueueFull,
    TimedOut,
    TryLater,
    Unauthenticated,
    UnknownModel,
)

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 1  # where nothing better is known
LONGEST_RETRY_AFTER_S = 60  # what is guessed beyond it is worth little, and OpenAI's clients heed no more
# Fields whose values are a caller's text, which no error repeats.
TEXTS = frozenset({"prompt", "messages", "stop", "tools", "chat_template_kwargs", "input", "instructions", "tokens"})
UNIONS = frozenset({"prompt", "stop", "speculation", "tool_choice"})  # pydantic reports one error per member of a union


@dataclass(frozen=True, slots=True)
class ErrorRow:
    status: int
    type: str
    code: str | None
    grpc: StatusCode
    retry: bool = False


FAULT = ErrorRow(500, "server_error", "internal_error", StatusCode.INTERNAL)

TABLE = MappingProxyType[type[BaseException], ErrorRow](
    {
        PromptTooLong: ErrorRow(400, "invalid_request_error", "context_length_exceeded", StatusCode.INVALID_ARGUMENT),
        BodyTooLarge: ErrorRow(413, "invalid_request_error", "request_too_large", StatusCode.INVALID_ARGUMENT),
        HeadTooLarge: ErrorRow(431, "invalid_request_error", "headers_too_large", StatusCode.INVALID_ARGUMENT),
        InvalidRequest: ErrorRow(400, "invalid_request_error", None, StatusCode.INVALID_ARGUMENT),
        Unauthenticated: ErrorRow(401, "invalid_request_error", "invalid_api_key", StatusCode.UNAUTHENTICATED),
        UnknownModel: ErrorRow(404, "invalid_request_error", "model_not_found", StatusCode.NOT_FOUND),
        QueueFull: ErrorRow(429, "rate_limit_error", "rate_limit_exceeded", StatusCode.RESOURCE_EXHAUSTED, retry=True),
        NotReady: ErrorRow(503, "service_unavailable", "not_ready", StatusCode.UNAVAILABLE, retry=True),
        TimedOut: ErrorRow(408, "timeout_error", "request_timeout", StatusCode.DEADLINE_EXCEEDED),
        Aborted: ErrorRow(499, "aborted_error", "request_aborted", StatusCode.CANCELLED),
        ModelFault: ErrorRow(500, "server_error", "model_fault", StatusCode.INTERNAL),
    }
)


def error_body(message: str, type: str, param: str | None, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


@dataclass(frozen=True, slots=True)
class Problem:
    """An error in the form that callers see. retry_after_s: when it is worth to ask again; None: never."""

    row: ErrorRow
    message: str
    param: str | None = None
    retry_after_s: int | None = None

    def body(self) -> dict[str, Any]:
        return error_body(self.message, self.row.type, self.param, self.row.code)

    def headers(self) -> dict[str, str]:
        if self.row.status == 401:
            return {"www-authenticate": 'Bearer realm="draftpool"'}
        return {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}


def to_problem(error: BaseException, request_id: str) -> Problem:
    """The problem for an exception. A fault is logged with its type and stack, but without values."""
    row = next((TABLE[cls] for cls in type(error).__mro__ if cls in TABLE), None)
    if row is None:
        frames = "".join(traceback.format_tb(error.__traceback__))
        logger.error("request %s failed with %s\n%s", request_id, type(error).__name__, frames)
        return Problem(FAULT, f"internal error; the log has more under request id {request_id}")
    param = "model" if isinstance(error, UnknownModel) else getattr(error, "param", None)
    message = printable(str(error))
    if not row.retry:
        return Problem(row, message, param)
    pause_s = retry_after_s(error)
    return Problem(row, f"{message}; try again in {pause_s} s", param, pause_s)  # draftpool/errors.py reads it


def retry_after_s(error: BaseException) -> int:
    """Whole seconds after which a request that was refused for now may come again."""
    known_s = error.retry_after_s if isinstance(error, TryLater) else None
    return ceil(min(max(known_s or 0.0, RETRY_AFTER_S), LONGEST_RETRY_AFTER_S))


def printable(text: str) -> str:
    """The text with lone surrogates escaped, so that it can be encoded. They can come from a caller's JSON."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def invalid_request(errors: Sequence[ErrorDetails]) -> InvalidRequest:
    """An error that explains the first of pydantic's errors and names its place in the request."""
    first = errors[0]
    place, name = first["loc"], str(first["loc"][0]) if first["loc"] else None
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InvalidRequest):
        is_named = not place or (len(place) == 1 and cause.param is not None)
        return cause if is_named else InvalidRequest(f"{_path(place)}: {cause}", name)
    if first["type"] == "json_invalid":
        return InvalidRequest(f"the body is not JSON: {cause} at character {place[0] if place else 0}")
    if name is None:
        return InvalidRequest("the body must be a JSON object, with content-type application/json")
    if first["type"] == "extra_forbidden":
        return InvalidRequest(f"unknown parameter {_path(place)[:100]!r}; leave it out", name[:100])
    if first["type"] == "missing":
        return InvalidRequest(f"{_path(place)} is missing", name)
    given = "" if name in TEXTS else f", got {reprlib.repr(first['input'])}"
    if name not in UNIONS:
        return InvalidRequest(f"{_path(place)}: {first['msg']}{given}", name)
    about = [_in_union(error) for error in errors[:8] if error["loc"][0] == name]
    return InvalidRequest(f"{name}: {', or '.join(dict.fromkeys(about))}{given}", name)


def _in_union(error: ErrorDetails) -> str:
    """What a member of a union says, with the place inside it."""
    place = _path(error["loc"][2:])
    return f"{place}: {error['msg']}" if place else error["msg"]


def _path(place: Sequence[int | str]) -> str:
    """The path as code, such as messages[0].content[1].text."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).removeprefix(".")
