"""Records of logs as JSON, one object a line, with the id of the request that they belong to."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO

REQUEST: ContextVar[str] = ContextVar("request")  # the id of what the running task answers


@contextmanager
def request_logged(request_id: str) -> Iterator[None]:
    """Records within the block belong to this request."""
    token = REQUEST.set(request_id)
    try:
        yield
    finally:
        REQUEST.reset(token)


class JsonFormatter(logging.Formatter):
    """fixed: fields of every record, such as the name of the process."""

    def __init__(self, **fixed: str) -> None:
        super().__init__()
        self._fixed = fixed

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields = {"time": moment, "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        if (request_id := REQUEST.get("")) != "":
            fields["request_id"] = request_id
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields | self._fixed)


def log_as_json(stream: TextIO, names: Iterable[str], **fixed: str) -> None:
    """What the loggers of these names say goes to the stream and nowhere else, from INFO on."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter(**fixed))
    for name in names:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
