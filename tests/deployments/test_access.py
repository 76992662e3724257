"""Which servers need keys, and what a start without them says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from api.door import Door
from api.keys import ADMIN_KEYS, KEYS, FixedKeys
from api.refused import CallRefused
from cli.demo_family import CODE, SMOLLM2
from deployments import cluster
from deployments.access import check_access, is_loopback, listens_beyond_loopback, open_door
from deployments.config import AppConfig, load_config
from deployments.config_access import AccessConfig
from deployments.direct import OWN_KEY, own_key
from deployments.ingress import Ingress
from protocol.errors import ConfigError, Unauthenticated
from protocol.pb import inference_pb2 as pb
from tests.api.api_client import Context

KEY, ADMIN = "key-of-a-caller-here", "key-of-an-operator"
BOTH = {KEYS: KEY, ADMIN_KEYS: ADMIN}
TARGETS = "targets: [{name: a, path: x}]\n"


def config_of(folder: Path, text: str) -> AppConfig:
    path = folder / "app.yaml"
    path.write_text(TARGETS + text, encoding="utf-8")
    return load_config(path)


PUBLIC = ["http: {host: 0.0.0.0}", "http: {host: 192.0.2.7}", "http: {host: '::'}", "grpc: {}"]


@pytest.mark.parametrize("listening", PUBLIC)
def test_beyond_loopback_a_start_without_keys_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listening: str
) -> None:
    for variable in (KEYS, ADMIN_KEYS):
        monkeypatch.delenv(variable, raising=False)
    config = config_of(tmp_path, listening)
    for environment, missing, variable in (({}, "keys_file", KEYS), ({KEYS: KEY}, "admin_keys_file", ADMIN_KEYS)):
        with pytest.raises(ConfigError, match="listens beyond loopback"), cluster.running(config):
            pass  # refused before anything is started
        with pytest.raises(ConfigError) as error:
            check_access(config, environment)
        message = str(error.value)
        assert message.startswith(f"access.{missing} is missing, and the server listens beyond loopback; ")
        assert variable in message
        assert "access: {open: true}" in message
    check_access(config, BOTH)
    check_access(config_of(tmp_path, f"{listening}\naccess: {{open: true}}"), {})


@pytest.mark.parametrize("listening", ["", "http: {host: localhost}", "http: {host: 127.9.9.9}", "http: {host: '::1'}"])
def test_on_loopback_none_are_needed(tmp_path: Path, listening: str) -> None:
    check_access(config_of(tmp_path, listening), {})
    for shipped in (CODE, SMOLLM2):
        check_access(load_config(shipped), {})


def test_only_this_machine_is_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1", None)))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "", "10.0.0.1", "localhost.example.org", "node", "127.0.0.1.x")))


@pytest.mark.parametrize(
    ("http", "servicers", "public"),
    [("127.0.0.1", [], False), ("0.0.0.0", [], True), ("127.0.0.1", ["servicer"], True), (None, [], False)],
)
async def test_a_replica_asks_serve_where_it_listens(
    monkeypatch: pytest.MonkeyPatch, http: str | None, servicers: list[str], public: bool
) -> None:
    def told(**options: Any) -> Any:
        async def remote() -> Any:
            return SimpleNamespace(**options)

        return SimpleNamespace(remote=remote)

    controller = SimpleNamespace(
        get_http_config=told(host=http), get_grpc_config=told(port=9000, grpc_servicer_functions=servicers)
    )
    monkeypatch.setattr("ray.get_actor", lambda name, namespace: controller)
    assert await listens_beyond_loopback() == public


def test_keys_come_from_files_beside_the_config_and_from_the_environment(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"{KEY}\n")
    access = config_of(tmp_path, "access: {keys_file: keys, admin_keys_file: ./keys}").access
    assert access.keys_file == access.admin_keys_file == str(tmp_path / "keys")
    more = "another-key-of-a-caller"
    door = open_door(access, {KEYS: f" {more}, {more}x "}, is_public=True)
    for key in (KEY, more, f"{more}x"):
        door.admit("/v1/models", f"Bearer {key}")
    with pytest.raises(Unauthenticated):
        door.admit("/v1/models", f"Bearer {more},")
    with pytest.raises(Unauthenticated):
        door.admit("/debug/stats", f"Bearer {more}")
    door.admit("/debug/stats", f"Bearer {KEY}")


def test_a_file_that_is_not_there_is_refused_also_on_loopback(tmp_path: Path) -> None:
    config = config_of(tmp_path, "access: {keys_file: nothing}")
    with pytest.raises(ConfigError, match=f"cannot read the keys in {tmp_path}/nothing"), cluster.running(config):
        pass


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "access: {keys: [key-that-is-secret]}",
            "access: unknown key keys; choose one of admin_keys_file, keys_file, open",
        ),
        ("access: {keys_file: [key-that-is-secret]}", "access: keys_file is not the name of a file"),
        ("access: {admin_keys_file: {a: key-that-is-secret}}", "access: admin_keys_file is not the name of a file"),
        ("access: [key-that-is-secret]", "access: a mapping of keys is needed"),
    ],
)
def test_a_key_in_a_config_is_refused_and_not_repeated(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        config_of(tmp_path, text)
    assert message in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("method", pb.DESCRIPTOR.services_by_name["Inference"].methods_by_name)
async def test_every_rpc_of_the_ingress_begins_at_the_door(method: str) -> None:
    deployment: Any = Ingress
    ingress = SimpleNamespace(_door=Door(FixedKeys([KEY], "here")), _backend=None)
    for header in ({}, {"authorization": "Bearer wrong"}):
        context = Context(**header)
        answer = getattr(deployment.func_or_class, method)(ingress, object(), context)
        with pytest.raises(CallRefused):
            await (anext(answer) if hasattr(answer, "__anext__") else answer)
        assert context.code is grpc.StatusCode.UNAUTHENTICATED


def test_our_own_commands_show_the_key_that_they_have() -> None:
    assert own_key({}) is None
    assert own_key({KEYS: f"{KEY} x", ADMIN_KEYS: ADMIN, OWN_KEY: "mine"}) == "mine"
    assert own_key({KEYS: f"{KEY} x", ADMIN_KEYS: f"{ADMIN},x"}) == ADMIN
    assert own_key({KEYS: f"{KEY} x"}) == KEY


def test_a_config_without_a_section_is_closed_to_nobody_on_loopback() -> None:
    open_door(AccessConfig(), {}, is_public=False).admit("/debug/stats", None)
