"""The ingress under a real Ray Serve with a scripted target: what crosses its handles and both of its proxies."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from ray import serve

from deployments.app import APP_NAME
from deployments.config import IngressConfig
from deployments.config_access import AccessConfig
from deployments.ingress import Ingress
from deployments.session import attached_ray
from draftpool import Client, QueueFull, Retries, TimedOut
from protocol.pb import inference_pb2 as pb
from protocol.pb import inference_pb2_grpc as pb_grpc
from tests.api.api_twins import tiny_tokenizer
from tests.deployments.harness import wait_until
from tests.deployments.head import Head
from tests.deployments.ingress_twins import (
    COUNT,
    DIE,
    FAULT,
    FULL,
    HANG,
    NUM_TOKENS,
    POISON,
    REFUSE,
    ScriptedTarget,
)

pytestmark = pytest.mark.ray
KEY, ADMIN = "key-of-a-caller-here", "key-of-an-operator"
TOKENS = [80 + index for index in range(NUM_TOKENS)]
METADATA = (("application", APP_NAME), ("authorization", f"Bearer {KEY}"))


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory, ray_head: Head) -> Iterator[Head]:
    """The application is up as long as the fixture is."""
    path = str(tmp_path_factory.mktemp("tokenizer"))
    tiny_tokenizer().save_pretrained(path)
    files = {f"{name}_file": tmp_path_factory.mktemp(name) / "file" for name in ("keys", "admin_keys")}
    for file, key in zip(files.values(), (KEY, ADMIN), strict=True):
        file.write_text(key)
    access = AccessConfig.model_validate({name: str(file) for name, file in files.items()})
    options: dict[str, Any] = {"max_ongoing_requests": 50, "ray_actor_options": {"num_cpus": 0}}
    with attached_ray(ray_head.address):
        target = serve.deployment(ScriptedTarget).options(name="target-tiny", **options).bind()
        bound = Ingress.options(**options).bind(
            {"tiny": target}, {"tiny": path}, IngressConfig(reissues=1), access=access
        )
        serve.run(bound, name=APP_NAME)
        yield ray_head
        serve.delete(APP_NAME)


@pytest.fixture
def client(head: Head) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=head.url, timeout=30, headers={"authorization": f"Bearer {KEY}"}) as client:
        wait_until(lambda: client.get("/ready").status_code == 200)
        yield client


@pytest.fixture
def stub(head: Head, client: httpx.Client) -> Iterator[Any]:
    with grpc.insecure_channel(f"127.0.0.1:{head.grpc_port}") as channel:
        yield pb_grpc.InferenceStub(channel)


def complete(client: httpx.Client, what: int, **fields: Any) -> httpx.Response:
    return client.post("/v1/completions", json=asking(what, **fields))


def asking(what: int, **fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": [what], "return_token_ids": True} | fields


def call(stub: Any, what: int, metadata: Any = METADATA) -> Any:
    request = pb.GenerateRequest(model="tiny", token_ids=pb.TokenIds(ids=[what]))
    return stub.Generate(request, metadata=metadata)


def num_open() -> int:
    told: dict[str, int] = serve.get_deployment_handle("target-tiny", APP_NAME).describe.remote().result()
    return told["num_open"]


def test_both_proxies_give_the_same_tokens(client: httpx.Client, stub: Any) -> None:
    body = complete(client, COUNT).json()
    assert body["choices"][0]["token_ids"] == TOKENS
    assert body["choices"][0]["finish_reason"] == "length"
    parts = list(call(stub, COUNT))
    assert [token for part in parts for token in part.token_ids] == TOKENS
    assert parts[-1].finish_reason == pb.FINISH_REASON_LENGTH
    models = stub.ListModels(pb.ListModelsRequest(), metadata=METADATA).models
    assert [model.id for model in models] == [card["id"] for card in client.get("/v1/models").json()["data"]]


def test_without_a_key_both_proxies_refuse(client: httpx.Client, stub: Any, head: Head) -> None:
    response = httpx.post(f"{head.url}/v1/completions", json={"model": "tiny", "prompt": [COUNT]})
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert httpx.get(f"{head.url}/health").status_code == 200
    for metadata in (METADATA[:1], (METADATA[0], ("authorization", "Bearer wrong"))):
        with pytest.raises(grpc.RpcError) as caught:
            list(call(stub, COUNT, metadata))
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "Traceback" not in error.details()


def test_a_chat_is_rendered_beside_the_ingress(client: httpx.Client) -> None:
    fields = {"model": "tiny", "messages": [{"role": "user", "content": "hi <|eos|>"}], "return_token_ids": True}
    for _ in range(3):
        response = client.post("/v1/chat/completions", json=fields)
        assert response.status_code == 200, response.text
        assert response.json()["choices"][0]["token_ids"] == TOKENS


def test_limits_hold_behind_both_proxies(client: httpx.Client, stub: Any) -> None:
    chunked = client.post("/v1/completions", content=(b" " * (1 << 16) for _ in range(80)))
    assert (chunked.status_code, chunked.json()["error"]["code"]) == (413, "request_too_large")
    assert client.get("/health", headers={"x": "y" * 40_000}).status_code == 431
    assert client.post("/v1/completions", content=b"[" * 100_000).status_code == 400
    for size, code in ((5, grpc.StatusCode.INVALID_ARGUMENT), (20, grpc.StatusCode.RESOURCE_EXHAUSTED)):
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.Generate(pb.GenerateRequest(model="tiny", text="x" * (size << 20)), metadata=METADATA))
        error: Any = caught.value
        assert error.code() is code
        assert "Traceback" not in error.details()


@pytest.mark.parametrize(
    ("what", "status", "code"),
    [
        (FULL, 429, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (REFUSE, 400, grpc.StatusCode.INVALID_ARGUMENT),
        (FAULT, 500, grpc.StatusCode.INTERNAL),
    ],
)
def test_a_targets_error_is_an_error_of_the_api(
    client: httpx.Client, stub: Any, what: int, status: int, code: grpc.StatusCode
) -> None:
    for stream in (False, True):
        response = complete(client, what, stream=stream)
        assert response.status_code == status
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        assert "secret" not in response.text
    with pytest.raises(grpc.RpcError) as caught:
        list(call(stub, what))
    error: Any = caught.value
    assert error.code() is code
    assert not {"secret", "Traceback"} & set(error.details().replace(":", " ").split())


def test_a_refusal_leaves_no_traceback_in_the_targets_log(client: httpx.Client) -> None:
    for what, status in ((FULL, 429), (REFUSE, 400)):
        assert complete(client, what, seed=77).status_code == status
    log = serve.get_deployment_handle("target-tiny", APP_NAME).log.remote().result()
    assert "generate" in log, "the log of this replica"
    assert "QueueFull" not in log
    assert "InvalidRequest" not in log


def test_a_request_whose_time_is_over_is_a_timeout_over_both_proxies(client: httpx.Client) -> None:
    fields = {"model": "tiny", "prompt": [HANG]}
    headers = {"x-request-timeout-seconds": "0.3"}
    response = client.post("/v1/completions", json=fields, headers=headers)
    assert response.status_code == 408
    assert response.json()["error"]["code"] == "request_timeout"
    response = client.post("/v1/completions", json=fields | {"stream": True}, headers=headers)
    *_, error, done, _ = response.text.split("\n\n")
    assert done == "data: [DONE]"
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "request_timeout"


def test_statistics_are_told_over_http(client: httpx.Client) -> None:
    assert client.get("/debug/stats").status_code == 401
    told = client.get("/debug/stats", headers={"authorization": f"Bearer {ADMIN}"})
    assert told.json() == {"targets": {"tiny": [{"num_running": 0}]}, "pool": []}


def test_the_request_id_is_on_the_response_once(client: httpx.Client) -> None:
    response = client.get("/v1/models", headers={"x-request-id": "mine"})
    assert response.headers.get_list("x-request-id") == ["mine"]


def test_the_target_stops_when_its_client_leaves(client: httpx.Client, stub: Any) -> None:
    fields = {"model": "tiny", "prompt": [HANG], "stream": True}
    with client.stream("POST", "/v1/completions", json=fields) as response:
        next(response.iter_lines())
    running = call(stub, HANG)
    next(running)
    time.sleep(0.1)  # Serve's proxy can miss a cancel that comes while it writes
    running.cancel()
    wait_until(lambda: not num_open())  # of itself the target would never end


def test_the_target_stops_at_an_abort_and_at_a_deadline(client: httpx.Client, stub: Any) -> None:
    running = call(stub, HANG)
    aborted = stub.Abort(pb.AbortRequest(request_id=next(running).request_id), metadata=METADATA)
    assert aborted.was_open
    request = pb.GenerateRequest(model="tiny", token_ids=pb.TokenIds(ids=[HANG]))
    late = stub.Generate(request, metadata=METADATA, timeout=0.5)
    for ended, code in ((running, grpc.StatusCode.CANCELLED), (late, grpc.StatusCode.DEADLINE_EXCEEDED)):
        with pytest.raises(grpc.RpcError) as caught:
            list(ended)
        error: Any = caught.value
        assert error.code() is code
        assert "Traceback" not in error.details()
    wait_until(lambda: not num_open())
    assert not stub.Abort(pb.AbortRequest(request_id="gen-unknown"), metadata=METADATA).was_open


def test_serves_proxy_passes_on_what_is_beside_the_completions(client: httpx.Client, head: Head, stub: Any) -> None:
    messages = [pb.ChatMessage(role="user", content="a")]
    options = pb.GenerateRequest(model="tiny")
    parts = list(stub.Chat(pb.ChatRequest(messages=messages, options=options), metadata=METADATA))
    assert [token for part in parts for token in part.token_ids] == TOKENS
    info = stub.GetModelInfo(pb.GetModelInfoRequest(model="tiny"), metadata=METADATA)
    assert (info.max_model_len, info.vocab_size, list(info.exits)) == (64, 320, [2])
    (load,) = stub.GetLoads(pb.GetLoadsRequest(), metadata=METADATA).models
    assert [(replica.num_running, replica.HasField("num_pages")) for replica in load.replicas] == [(0, False)]
    with grpc.insecure_channel(f"127.0.0.1:{head.grpc_port}") as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        for service in ("", "draftpool.v1.Inference", "tiny"):  # a prober sends no application
            told = health.Check(health_pb2.HealthCheckRequest(service=service))
            assert told.status == health_pb2.HealthCheckResponse.SERVING
        for call_, code in (
            (lambda: health.Check(health_pb2.HealthCheckRequest(service="huge")), grpc.StatusCode.NOT_FOUND),
            (lambda: list(health.Watch(health_pb2.HealthCheckRequest())), grpc.StatusCode.UNIMPLEMENTED),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call_()
            error: Any = caught.value
            assert error.code() is code


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_the_client_works_behind_both_proxies(client: httpx.Client, head: Head, scheme: str) -> None:
    url = head.url if scheme == "http" else f"grpc://127.0.0.1:{head.grpc_port}"
    with Client(url, api_key=KEY, retries=Retries(most=0), timeout_s=30) as ours:
        assert list(ours.complete("tiny", [COUNT]).token_ids) == TOKENS
        with pytest.raises(QueueFull, match=r"queued; try again in 7 s$"):
            ours.complete("tiny", [FULL])
        with pytest.raises(TimedOut):
            ours.complete("tiny", [HANG], timeout_s=0.5)
        with ours.stream("tiny", [HANG]) as deltas:
            assert next(deltas).token_ids
            time.sleep(0.1)  # Serve's proxy can miss a cancel that comes while it writes
    wait_until(lambda: not num_open())


def test_an_answer_goes_on_when_its_target_dies(client: httpx.Client, stub: Any) -> None:
    with client.stream("POST", "/v1/completions", json=asking(DIE, stream=True)) as response:
        *chunks, done = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert done == "[DONE]"
    choices = [json.loads(chunk)["choices"][0] for chunk in chunks]
    assert [token for choice in choices for token in choice["token_ids"]] == TOKENS
    assert choices[-1]["finish_reason"] == "length"
    assert [token for part in call(stub, DIE) for token in part.token_ids] == TOKENS


def test_a_request_that_kills_every_target_is_an_error_and_the_next_one_is_served(
    client: httpx.Client, stub: Any
) -> None:
    with client.stream("POST", "/v1/completions", json=asking(POISON, stream=True)) as response:
        assert response.status_code == 200
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    assert "lost" in json.loads(lines[-2])["error"]["message"]
    assert complete(client, COUNT).json()["choices"][0]["token_ids"] == TOKENS
    with pytest.raises(grpc.RpcError) as caught:
        list(call(stub, POISON))
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.UNAVAILABLE
