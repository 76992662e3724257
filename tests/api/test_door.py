"""Who gets in over real sockets: callers with a key, operators with an admin key, and nobody around them."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import httpx
import openai
import pytest

from api import rpc
from api.door import Door
from api.keys import FixedKeys, KeyFile
from protocol.pb import inference_pb2 as pb
from protocol.pb import inference_pb2_grpc as pb_grpc
from tests.api.api_client import CHAT, COMPLETION, TEXT, error_of
from tests.api.api_twins import ScriptedBackend, says
from tests.bench.http_server import http_server

ONE, TWO, ADMIN = "key-of-the-first-caller", "key-of-the-second-caller", "key-of-the-operator"
SITE = "https://chat.example.org"


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"# ours\n{ONE}\n\n  {TWO}\n")
    return path


@pytest.fixture(scope="module")
def door(keys: Path) -> Door:
    return Door(KeyFile(keys), FixedKeys([ADMIN], "here"))


@pytest.fixture(scope="module")
def backend() -> ScriptedBackend:
    return ScriptedBackend(says(TEXT))


@pytest.fixture(scope="module")
def url(backend: ScriptedBackend, door: Door) -> Iterator[str]:
    with http_server(backend, door=door, cors_origins=(SITE,)) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.mark.parametrize("key", [ONE, TWO, ADMIN])
def test_every_key_opens_the_api(client: httpx.Client, key: str) -> None:
    for scheme in ("Bearer", "bearer", "BEARER "):
        headers = {"authorization": f"{scheme} {key}"}
        assert client.post("/v1/completions", json=COMPLETION, headers=headers).status_code == 200
        assert client.post("/v1/chat/completions", json=CHAT, headers=headers).status_code == 200
        assert client.get("/v1/models", headers=headers).status_code == 200


WRONG = ["", "Bearer", f"Basic {ONE}", ONE, f"Bearer {ONE[:-1]}", f"Bearer {ONE}x", f"Bearer {ONE} {TWO}"]
WRONG += [f"Bearer {ONE.upper()}", "Bearer # ours", "Bearer \xe9\xe9\xe9"]


@pytest.mark.parametrize("header", WRONG)
def test_whatever_is_no_key_is_a_401_that_says_what_is_needed(client: httpx.Client, header: str) -> None:
    headers = {"authorization": header.encode("latin-1")}
    for method, path, body in (
        ("POST", "/v1/completions", COMPLETION),
        ("POST", "/v1/chat/completions", CHAT),
        ("GET", "/v1/models", None),
        ("GET", "/v1/models/tiny", None),
        ("GET", "/openapi.json", None),
        ("GET", "/debug/stats", None),
        ("GET", "/nothing", None),
    ):
        response = client.request(method, path, json=body, headers=headers)
        error = error_of(response, 401)
        assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
        assert response.headers["www-authenticate"].startswith("Bearer ")
        assert "key" in error["message"]
        assert ONE not in response.text


def test_no_header_at_all_is_a_401_too(client: httpx.Client, backend: ScriptedBackend) -> None:
    before = len(backend.requests)
    assert "Authorization: Bearer KEY" in error_of(client.post("/v1/completions", json=COMPLETION), 401)["message"]
    assert len(backend.requests) == before


def test_openais_client_raises_its_own_error(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError, match="none of this server's"):
            client.models.list()
        assert [model.id for model in client.with_options(api_key=TWO).models.list()] == ["tiny"]


def test_probes_need_no_key(client: httpx.Client) -> None:
    for path in ("/health", "/ready", "/ready?model=tiny"):
        assert client.get(path).status_code == 200


@pytest.mark.parametrize("path", ["/debug/stats", "/debug/router", "/debug/tokens", "/debug/trace", "/metrics"])
def test_operators_routes_need_an_admin_key(client: httpx.Client, path: str) -> None:
    assert "admin key" in error_of(client.get(path), 401)["message"]
    assert "no admin key" in error_of(client.get(path, headers=bearer(ONE)), 401)["message"]
    assert client.get(path, headers=bearer(ADMIN)).status_code != 401


def raw_get(url: str, path: str, key: str | None) -> int:
    """The status for a path as it is spelled; other clients would mend it."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    try:
        connection.request("GET", path, headers={} if key is None else bearer(key))
        return connection.getresponse().status
    finally:
        connection.close()


SPELLINGS = ["//debug/stats", "/debug//stats", "/DEBUG/stats", "/debug%2Fstats", "/%64ebug/stats", "/./debug/stats"]
SPELLINGS += ["/health/../debug/stats", "/debug/stats/", "/debug/stats?x", "/debug/stats;x", "/v1/../debug/stats"]


@pytest.mark.parametrize("path", SPELLINGS)
def test_no_spelling_of_a_path_gets_around_the_admin_key(url: str, path: str) -> None:
    assert raw_get(url, path, ONE) in (401, 404)


@pytest.mark.parametrize("path", ["/health/../v1/models", "/health/", "//v1/models", "/Health", "/ready/v1"])
def test_no_spelling_of_a_path_gets_around_the_key(url: str, path: str) -> None:
    assert raw_get(url, path, None) in (400, 401)


def test_a_caller_without_a_key_is_refused_before_its_body_comes(url: str) -> None:
    place = urlsplit(url)
    with socket.create_connection((place.hostname or "", place.port or 0), timeout=10) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 4000000\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 401 ")


def test_a_page_may_ask_whether_it_may_without_a_key_and_reads_the_refusal(client: httpx.Client) -> None:
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    allowed = client.options("/v1/chat/completions", headers=asked | {"origin": SITE})
    assert allowed.status_code == 200
    assert "authorization" in allowed.headers["access-control-allow-headers"]
    refused = client.post("/v1/chat/completions", json=CHAT, headers={"origin": SITE})
    error_of(refused, 401)
    assert refused.headers["access-control-allow-origin"] == SITE


class Servicer(pb_grpc.InferenceServicer):
    """As the ingress: every call is admitted first."""

    def __init__(self, backend: ScriptedBackend, door: Door) -> None:
        self._backend, self._door = backend, door

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        rpc.admit(self._door, context)
        async for response in rpc.generate(self._backend, request, context):
            yield response

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        rpc.admit(self._door, context)
        return await rpc.list_models(self._backend, request, context)


@pytest.fixture
async def stub(backend: ScriptedBackend, door: Door) -> AsyncIterator[Any]:
    server = grpc.aio.server()
    pb_grpc.add_InferenceServicer_to_server(Servicer(backend, door), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield pb_grpc.InferenceStub(channel)
    await server.stop(None)


@pytest.mark.parametrize("header", [None, "Bearer wrong", ONE])
async def test_a_call_without_a_key_is_unauthenticated(stub: Any, header: str | None) -> None:
    metadata = () if header is None else (("authorization", header),)
    request = pb.GenerateRequest(model="tiny", text="import")
    with pytest.raises(grpc.aio.AioRpcError) as generated:
        _ = [part async for part in stub.Generate(request, metadata=metadata)]
    with pytest.raises(grpc.aio.AioRpcError) as listed:
        await stub.ListModels(pb.ListModelsRequest(), metadata=metadata)
    for caught in (generated, listed):
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "API key" in (caught.value.details() or "")
        assert "Traceback" not in (caught.value.details() or "")


async def test_a_call_with_a_key_in_its_metadata_is_answered(stub: Any) -> None:
    metadata = (("authorization", f"Bearer {TWO}"),)
    parts = [part async for part in stub.Generate(pb.GenerateRequest(model="tiny", text="import"), metadata=metadata)]
    assert "".join(part.text for part in parts) == TEXT
    assert (await stub.ListModels(pb.ListModelsRequest(), metadata=metadata)).models[0].id == "tiny"


def test_where_only_an_admin_key_is_set_everybody_may_call_and_operators_need_it() -> None:
    with http_server(ScriptedBackend(says(TEXT)), door=Door(admin_keys=FixedKeys([ADMIN], "here"))) as url:
        assert httpx.post(f"{url}/v1/completions", json=COMPLETION).status_code == 200
        assert httpx.get(f"{url}/debug/stats").status_code == 401
        assert httpx.get(f"{url}/debug/stats", headers=bearer(ADMIN)).status_code == 200


def test_without_keys_everything_is_open() -> None:
    with http_server(ScriptedBackend(says(TEXT))) as url:
        assert httpx.post(f"{url}/v1/completions", json=COMPLETION, headers=bearer("none")).status_code == 200
        assert json.loads(httpx.get(f"{url}/debug/stats").text)["pool"] == []
