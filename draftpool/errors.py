"""The server's errors, back in the classes that it raised them from.

api/errors.py maps each class to a status, and this module reads the same table the other way. Two classes are only a
client's. Where several classes share a status and the code does not say which one it is, the error is the most general.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from types import MappingProxyType
from typing import Any, TypeVar

from grpc import StatusCode

from api.errors import FAULT, TABLE, ErrorRow
from protocol.errors import DraftPoolError, InvalidRequest, NotReady, QueueFull, UserError

RETRIED = (QueueFull, NotReady)
_PAUSE = re.compile(r"try again in (\d{1,9}) s$")

Key = TypeVar("Key", bound=Hashable)


class ServerFault(DraftPoolError):
    """The server failed; the message has the request id under which its log says more."""


class ConnectionLost(DraftPoolError):
    """The answer broke off."""


class Refused(Exception):
    """An error on its way from a transport to the client. retry_after_s: seconds that the server asks to wait."""

    def __init__(self, error: DraftPoolError, retry_after_s: float | None = None) -> None:
        super().__init__(error)
        self.error = error
        self.retry_after_s = retry_after_s


def http_error(status: int, body: Any) -> DraftPoolError:
    """body: the answer's JSON; None if it has none."""
    told = body.get("error") if isinstance(body, dict) else None
    fields: dict[str, Any] = told if isinstance(told, dict) else {}
    kind = _BY_CODE.get(fields.get("code")) or _BY_STATUS.get(status) or _of_class(status)
    return _make(kind, str(fields.get("message") or f"the server answered {status}"), fields.get("param"))


def event_error(fields: Any) -> DraftPoolError:
    """The error of an event in a stream, which has no status."""
    is_callers = isinstance(fields, dict) and fields.get("type") == "invalid_request_error"
    return http_error(400 if is_callers else FAULT.status, {"error": fields})


def grpc_error(code: StatusCode, details: str) -> DraftPoolError:
    return _make(_BY_GRPC.get(code, ServerFault), details or f"the call ended with {code.name}", None)


def told_pause(details: str) -> float | None:
    """Seconds that the message of a status asks to wait; Ray Serve's proxies leave a message as the only place."""
    found = _PAUSE.search(details)
    return None if found is None else float(found[1])


def retry_after(text: str | None) -> float | None:
    """Seconds; a date, which the header may be too, counts as none."""
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds < float("inf") else None


def _make(kind: type[DraftPoolError], message: str, param: str | None) -> DraftPoolError:
    return kind(message, param) if issubclass(kind, InvalidRequest) else kind(message)


def _of_class(status: int) -> type[DraftPoolError]:
    return UserError if 400 <= status < 500 else ServerFault


def _general(key_of: Callable[[ErrorRow], Key]) -> MappingProxyType[Key, type[DraftPoolError]]:
    """The most general class of each key. A fault has the status of a class that is more special."""
    found: dict[Key, type[DraftPoolError]] = {key_of(FAULT): ServerFault}
    for kind, row in TABLE.items():
        assert issubclass(kind, DraftPoolError)
        known = found.setdefault(key_of(row), kind)
        if issubclass(known, kind):
            found[key_of(row)] = kind
    return MappingProxyType(found)


_BY_CODE = MappingProxyType[Any, type[DraftPoolError]](
    {row.code: kind for kind, row in TABLE.items() if row.code and issubclass(kind, DraftPoolError)}
)
_BY_STATUS = _general(lambda row: row.status)
_BY_GRPC = _general(lambda row: row.grpc)
