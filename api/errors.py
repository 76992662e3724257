"""Maps exceptions to what callers see over HTTP (status, OpenAI type and code) and gRPC.

An exception that is not in the table is a fault of the server: the caller gets the request id and nothing else.
"""

from __future__ import annotations

import logging
import traceback
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from grpc import StatusCode

from protocol.errors import InvalidRequest, ModelFault, NotReady, PromptTooLong, QueueFull, TimedOut, UnknownModel

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 1


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
        InvalidRequest: ErrorRow(400, "invalid_request_error", None, StatusCode.INVALID_ARGUMENT),
        UnknownModel: ErrorRow(404, "invalid_request_error", "model_not_found", StatusCode.NOT_FOUND),
        QueueFull: ErrorRow(429, "rate_limit_error", "rate_limit_exceeded", StatusCode.RESOURCE_EXHAUSTED, retry=True),
        NotReady: ErrorRow(503, "service_unavailable", "not_ready", StatusCode.UNAVAILABLE, retry=True),
        TimedOut: ErrorRow(408, "timeout_error", "request_timeout", StatusCode.DEADLINE_EXCEEDED),
        ModelFault: ErrorRow(500, "server_error", "model_fault", StatusCode.INTERNAL),
    }
)


@dataclass(frozen=True, slots=True)
class Problem:
    """An error in the form that callers see."""

    row: ErrorRow
    message: str
    param: str | None = None

    def body(self) -> dict[str, Any]:
        fields = {"message": self.message, "type": self.row.type, "param": self.param, "code": self.row.code}
        return {"error": fields}


def to_problem(error: BaseException, request_id: str) -> Problem:
    """The problem for an exception. A fault is logged with its type and stack, but without values."""
    row = next((TABLE[cls] for cls in type(error).__mro__ if cls in TABLE), None)
    if row is None:
        frames = "".join(traceback.format_tb(error.__traceback__))
        logger.error("request %s failed with %s\n%s", request_id, type(error).__name__, frames)
        return Problem(FAULT, f"internal error; the log has more under request id {request_id}")
    return Problem(row, printable(str(error)), getattr(error, "param", None) or _PARAMS.get(type(error)))


_PARAMS = MappingProxyType[type[BaseException], str]({UnknownModel: "model"})


def printable(text: str) -> str:
    """The text with lone surrogates escaped, so that it can be encoded. They can come from a caller's JSON."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
