"""Logs as JSON: one object a line, with the id of the request, and without a word of its prompt."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from api.logs import JsonFormatter, log_as_json, request_logged
from tests.api.api_client import TEXT, Client
from tests.api.api_twins import ScriptedBackend, says

SECRET = "geheimnis"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """What the API logs; its loggers are as before afterwards."""
    logger, made = logging.getLogger("api"), io.StringIO()
    before = logger.handlers, logger.propagate, logger.level
    log_as_json(made, ["api"], replica="a1")
    yield made
    logger.handlers, logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


def records(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


async def test_the_records_of_a_request_have_its_id_and_nothing_of_its_prompt(stream: io.StringIO) -> None:
    async with Client(ScriptedBackend(says(TEXT))) as client:
        asked = {"model": "tiny", "prompt": SECRET, "stop": [SECRET], "user": SECRET}
        response = await client.post("/v1/completions", json=asked, headers={"x-request-id": "mine-7"})
    assert response.headers["x-request-id"] == "mine-7"
    (record,) = records(stream)
    assert {"level": "INFO", "logger": "api.answer", "request_id": "mine-7", "replica": "a1"}.items() <= record.items()
    assert response.json()["id"] in record["message"], "other processes know the request by this one"
    assert SECRET not in stream.getvalue()


async def test_a_fault_is_one_line_too(stream: io.StringIO) -> None:
    async with Client(ScriptedBackend(lambda request: [ZeroDivisionError(SECRET)])) as client:
        response = await client.complete(prompt=SECRET)
    assert response.status_code == 500
    *_, record = records(stream)
    assert record["level"] == "ERROR"
    assert record["request_id"] == response.headers["x-request-id"]
    assert "ZeroDivisionError" in record["message"]
    assert SECRET not in stream.getvalue()


@pytest.mark.parametrize("bad", ["", "x" * 129, "two words", "a\tb", "ü".encode().decode("latin-1")], ids=repr)
async def test_an_id_that_is_none_is_replaced(stream: io.StringIO, bad: str) -> None:
    async with Client(ScriptedBackend(says(TEXT))) as client:
        response = await client.post(
            "/v1/completions", json={"model": "tiny", "prompt": "a"}, headers={b"x-request-id": bad.encode("latin-1")}
        )
    given = response.headers["x-request-id"]
    assert given != bad
    assert len(given) == 32
    assert records(stream)[-1]["request_id"] == given


def test_requests_do_not_lend_each_other_their_ids() -> None:
    def told() -> dict[str, Any]:
        record = logging.LogRecord("api.x", logging.WARNING, "x.py", 1, "line\n%s", ("two",), None)
        fields: dict[str, Any] = json.loads(JsonFormatter().format(record))
        return fields

    with request_logged("outer"):
        with request_logged("inner"):
            assert told()["request_id"] == "inner"
        assert told()["request_id"] == "outer"
    assert "request_id" not in told()
    assert told()["message"] == "line\ntwo", "a line break is an escape"
