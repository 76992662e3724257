"""Requests over real sockets that are too large, too deep or too slow: answers that say so."""

from __future__ import annotations

import json
import random
import re
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from api.limits import RequestLimits, nesting
from tests.api.api_client import CHAT, COMPLETION, TEXT, error_of
from tests.api.api_twins import ScriptedBackend, says
from tests.bench.http_server import http_server

LIMITS = RequestLimits(headers=30, head_bytes=2000, body_bytes=10_000, body_s=0.5, values=200, depth=16)
BOTH = ["/v1/completions", "/v1/chat/completions"]
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def backend() -> ScriptedBackend:
    return ScriptedBackend(says(TEXT))


@pytest.fixture(scope="module")
def url(backend: ScriptedBackend) -> Iterator[str]:
    with http_server(backend, limits=LIMITS) as url:
        yield url


@pytest.fixture
def client(url: str, backend: ScriptedBackend) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client
        assert client.post("/v1/completions", json=COMPLETION).status_code == 200
    assert backend.num_open == 0


def chunks(num_bytes: int) -> Iterator[bytes]:
    """A body that does not say its size."""
    for _ in range(num_bytes // 100):
        yield b" " * 100


@pytest.mark.parametrize("path", BOTH)
def test_a_chunked_body_is_read_up_to_the_limit(client: httpx.Client, path: str) -> None:
    error = error_of(client.post(path, content=chunks(20_000), headers=JSON), 413)
    assert error["code"] == "request_too_large"
    assert re.match(r"the request has at least \d+ bytes, and this server takes at most 10000; ", error["message"])
    body = json.dumps(CHAT if "chat" in path else COMPLETION).encode()
    assert client.post(path, content=iter([body[:9], body[9:], b" " * 9000]), headers=JSON).status_code == 200


@pytest.mark.parametrize("length", ["-1", "1e3", "9" * 30, "0x10", "10, 10"])
def test_a_length_that_is_none_is_a_400_or_413(url: str, length: str) -> None:
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n"
    assert exchange(url, head.encode()).split()[1] in (b"400", b"413")


def test_too_many_headers_and_too_long_ones_are_a_431(client: httpx.Client) -> None:
    many = client.get("/health", headers={f"x-{number}": "" for number in range(30)})
    assert "send 30 at most" in error_of(many, 431)["message"]
    for long in (client.get("/health", headers={"x": "y" * 2000}), client.get(f"/health?{'y' * 2000}")):
        error = error_of(long, 431)
        assert error["code"] == "headers_too_large"
        assert "send 2000 at most" in error["message"]
    assert client.get("/health", headers={f"x-{number}": "y" for number in range(20)}).status_code == 200


def nested(depth: int, opening: str = "[", closing: str = "]") -> bytes:
    """A body that is `depth` deep, the body's own object counted."""
    inside = opening * (depth - 1) + closing * (depth - 1)
    return f'{{"model": "tiny", "prompt": "import", "metadata": {inside}}}'.encode()


@pytest.mark.parametrize("path", BOTH)
def test_a_body_that_nests_too_deep_is_a_400_that_says_how_deep(client: httpx.Client, path: str) -> None:
    for body in (nested(17), nested(150), nested(17, '{"a":[', "]}").replace(b"[]", b"[1]"), b"[" * 150):
        message = error_of(client.post(path, content=body, headers=JSON), 400)["message"]
        assert "deep; send 16 at most" in message
    harmless = COMPLETION | {"prompt": "[{" * 40 + '\\"' + "[{" * 40, "metadata": {"x": ["[[" * 30]}}
    assert "deep" not in client.post("/v1/completions", json=harmless).text
    assert client.post("/v1/completions", content=nested(16), headers=JSON).status_code == 200


def test_more_lists_and_objects_than_are_checked_in_time_are_a_400(client: httpx.Client) -> None:
    message = {"role": "user", "content": ""}
    many = client.post("/v1/chat/completions", json=CHAT | {"messages": [message] * 199})
    assert error_of(many, 400)["message"] == "the body has 201 lists and objects; send 200 at most"
    fewer = client.post("/v1/chat/completions", json=CHAT | {"messages": [message] * 198})
    assert "lists and objects" not in fewer.text


def value_of(rng: random.Random, room: int) -> Any:
    """Any JSON value, with strings that look like brackets and escapes."""
    if rng.random() < 0.6 and room:
        inner = [value_of(rng, room - 1) for _ in range(rng.randrange(4))]
        return inner if rng.random() < 0.5 else {text_of(rng): value for value in inner}
    return rng.choice([None, True, 1, -1.5, text_of(rng)])


def text_of(rng: random.Random) -> str:
    return "".join(rng.choices(['"', "\\", "[", "]", "{", "}", "\n", "a", "ü", "\u2028", "\x00"], k=rng.randrange(6)))


def nesting_of(value: Any) -> tuple[int, int]:
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return 0, 0
    inner = list(map(nesting_of, value))
    return 1 + sum(count for count, _ in inner), 1 + max((depth for _, depth in inner), default=0)


@pytest.mark.parametrize("seed", range(20))
def test_nesting_is_what_a_parser_finds(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(50):
        value = value_of(rng, rng.randrange(9))
        for escaped in (True, False):
            assert nesting(json.dumps(value, ensure_ascii=escaped).encode()) == nesting_of(value)


def test_a_large_body_of_nothing_but_brackets_is_counted_in_no_time() -> None:
    began = time.process_time()
    assert nesting(b"[]" * (2 << 20)) == (2 << 20, 1)
    assert nesting((b"[" * 32 + b"]" * 32) * (1 << 16)) == (1 << 21, 32)
    assert time.process_time() - began < 2.0


def exchange(url: str, sent: bytes, *more: bytes) -> bytes:
    """What a server says to these bytes, and more a tenth of a second apart, until it closes or has said all."""
    place = urlsplit(url)
    said = b""
    with socket.create_connection((place.hostname or "", place.port or 0), timeout=10) as connection:
        connection.sendall(sent)
        connection.settimeout(0.1)
        waiting = list(more)
        end = time.monotonic() + 10
        while time.monotonic() < end:
            try:
                if not (part := connection.recv(1 << 16)):
                    break
                said += part
            except TimeoutError:
                if said:
                    break
                if waiting:
                    connection.sendall(waiting.pop(0))
    return said


def test_a_body_that_comes_too_slowly_is_a_408_and_the_end_of_the_connection(url: str) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 60\r\n\r\n"
    for drops in ((), (b" ",) * 40):
        said = exchange(url, head, *drops)
        assert said.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close" in said.lower()
        assert b'"code":"request_timeout"' in said
        assert b"did not come within 0.5 s" in said


def test_a_client_that_leaves_before_its_body_is_complete_leaves_nothing(url: str, backend: ScriptedBackend) -> None:
    place, before = urlsplit(url), len(backend.requests)
    for _ in range(5):
        with socket.create_connection((place.hostname or "", place.port or 0), timeout=10) as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 60\r\n\r\n{")
    assert httpx.get(f"{url}/health").status_code == 200
    assert len(backend.requests) == before


ODD = [b"1" * 5000, b'{"model": "tiny", "prompt": "x", "seed": %s}' % (b"9" * 5000), b'{"model": 1e999}', b"NaN"]
ODD += ['{"model": "tiny"}'.encode("utf-16"), b'{"a": "\\ud800"}', b'\xef\xbb\xbf{"model": "tiny"}', b'{"\\u0000": 1}']


@pytest.mark.parametrize("body", ODD, ids=lambda body: repr(body[:16]))
@pytest.mark.parametrize("path", BOTH)
def test_odd_json_is_a_400_without_a_traceback(client: httpx.Client, path: str, body: bytes) -> None:
    response = client.post(path, content=body, headers=JSON)
    error_of(response, 400)
    assert "Traceback" not in response.text
