"""What becomes of the application on a cluster when something fails, with a Serve that plays along."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest
from ray.serve.schema import ApplicationStatus

from deployments import cluster, session
from deployments.app import APP_NAME
from deployments.config import AppConfig, HttpConfig
from protocol.errors import ConfigError, NotReady

CONFIG = AppConfig.model_validate({"targets": [{"name": "a", "path": "."}]})


class Serve:
    """What deployments.cluster asks of ray.serve. trouble: raised by the call of that name."""

    def __init__(self) -> None:
        self.applications: dict[str, Any] = {}
        self.starts_as = ApplicationStatus.RUNNING
        self.trouble: dict[str, Exception] = {}
        self.calls: list[str] = []

    def start(self, **options: Any) -> None:
        self._called("start")

    def run_many(self, targets: Any, **options: Any) -> None:
        self._called("run_many")
        self.put(self.starts_as)

    def delete(self, name: str) -> None:
        self._called("delete")
        del self.applications[name]

    def status(self) -> Any:
        return SimpleNamespace(applications=self.applications)

    def put(self, status: ApplicationStatus) -> None:
        part = SimpleNamespace(message="ValueError: no such thing", replica_states={"RUNNING": 2})
        self.applications[APP_NAME] = SimpleNamespace(status=status, deployments={"target-a": part}, message="")

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name in self.trouble:
            raise self.trouble[name]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """A cluster to attach to, on which every /ready is 200."""

    @contextmanager
    def attached(address: str) -> Iterator[None]:
        yield

    made = Serve()
    for name in ("start", "run_many", "delete", "status"):
        monkeypatch.setattr(f"ray.serve.{name}", getattr(made, name))
    monkeypatch.setattr(cluster, "attached_ray", attached)
    monkeypatch.setattr(cluster, "answers", lambda url: True)
    return made


def start(config: AppConfig = CONFIG) -> str:
    with cluster.running(config, address="auto") as url:
        return url


def test_an_application_is_deleted_at_its_end(serve: Serve) -> None:
    with cluster.running(CONFIG, address="auto"):
        assert APP_NAME in serve.applications
    assert serve.calls == ["start", "run_many", "delete"]


def test_a_second_start_is_refused_and_leaves_the_first_alone(serve: Serve) -> None:
    serve.put(ApplicationStatus.RUNNING)
    with pytest.raises(ConfigError, match=r"already \(RUNNING\); stop it"):
        start()
    assert serve.calls == []


@pytest.mark.parametrize("call", ["start", "run_many"])
def test_an_application_that_was_not_deployed_is_not_deleted(serve: Serve, call: str) -> None:
    serve.trouble[call] = RuntimeError("the cause")
    with pytest.raises(RuntimeError, match="the cause"):
        start()
    assert "delete" not in serve.calls


def test_an_application_that_fails_is_deleted_and_its_error_named(serve: Serve) -> None:
    serve.starts_as = ApplicationStatus.DEPLOY_FAILED
    with pytest.raises(NotReady, match="did not start: ValueError: no such thing"):
        start()
    assert serve.applications == {}


def test_an_error_while_deleting_does_not_hide_the_earlier_one(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    serve.starts_as = ApplicationStatus.DEPLOY_FAILED
    serve.trouble["delete"] = RuntimeError("no Serve instance is running")
    with pytest.raises(NotReady, match="no such thing"):
        start()
    assert "may still be on the cluster: no Serve instance is running" in caplog.text


def test_a_port_in_use_is_refused_for_a_local_cluster_only(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = CONFIG.model_copy(update={"http": HttpConfig(port=taken.getsockname()[1])})
        assert start(config) == f"http://127.0.0.1:{config.http.port}"
        with pytest.raises(ConfigError, match=r"cannot be used .*; set http.port"), cluster.running(config):
            pass


def test_waiting_for_health_ends_at_the_limit_or_at_a_failure(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "answers", lambda url: False)
    serve.put(ApplicationStatus.RUNNING)
    with pytest.raises(NotReady, match="/ready does not answer after 0 s"):
        cluster.wait_until_healthy("http://127.0.0.1:1", limit_s=0)
    serve.put(ApplicationStatus.UNHEALTHY)
    with pytest.raises(NotReady, match="did not start: ValueError: no such thing"):
        cluster.wait_until_healthy("http://127.0.0.1:1")
    serve.applications.clear()
    with pytest.raises(NotReady, match="somebody deleted it"):
        cluster.wait_until_healthy("http://127.0.0.1:1")


def test_a_cluster_that_does_not_answer_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**settings: Any) -> None:
        raise ConnectionError("nothing listens")

    monkeypatch.setattr(session, "init_ray", refuse)
    with pytest.raises(ConfigError, match="no Ray cluster answers at head:6379"), session.attached_ray("head:6379"):
        pass


@pytest.fixture
def dead_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever goes through it gets nowhere."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY", "grpc_proxy"):
        monkeypatch.delenv(name, raising=False)


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/ready" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.mark.usefixtures("dead_proxy")
def test_our_own_server_is_asked_without_a_proxy() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Healthy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert cluster.answers(url)
        with pytest.raises(OSError, match="refused"):
            urllib.request.build_opener().open(f"{url}/ready")  # which the proxy would be asked for
        server.shutdown()


@pytest.mark.usefixtures("dead_proxy")
@pytest.mark.parametrize("settings", [{}, session.SERVE_SETTINGS])
async def test_our_settings_keep_the_channels_of_serve_away_from_a_proxy(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str]
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        state = channel.get_state(try_to_connect=True)
        while state in (grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING):
            await channel.wait_for_state_change(state)
            state = channel.get_state(try_to_connect=True)
    await server.stop(0)
    assert (state is grpc.ChannelConnectivity.READY) == bool(settings)


@pytest.mark.parametrize("length", [session.MAX_BASE_BYTES, session.MAX_BASE_BYTES + 1])
def test_the_folder_of_ray_is_where_its_sockets_have_short_paths(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, length: int
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        asked = Path(short) / ("d" * (length - len(short) - 1))
        asked.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(asked))
        made = session.new_folder(str(tmp_path))
        assert made.parent == (asked if length == session.MAX_BASE_BYTES else tmp_path)
        ray_folder = made / "0" / "session_2026-11-29_02-54-50_123456_1234567" / "sockets" / "plasma_store"
        assert len(str(ray_folder)) <= 107 or made.parent == tmp_path
        made.rmdir()


def test_without_a_place_for_the_folder_of_ray_the_error_names_tmpdir(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("d" * 60)))
    with pytest.raises(ConfigError, match=r"No such file or directory\); set TMPDIR to a writable folder"):
        session.new_folder(str(tmp_path / "nothing"))


def test_a_local_ray_that_does_not_start_is_ended_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    left: list[subprocess.Popen[bytes]] = []

    def fail_twice(*, _temp_dir: str, **settings: Any) -> None:
        if len(left) < 2:
            left.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", _temp_dir]))
            raise Exception("the current node timed out during startup")

    monkeypatch.setattr(session, "init_ray", fail_twice)
    session.start_ray(tmp_path)
    assert [process.returncode for process in left] == [-signal.SIGKILL] * 2


def test_a_dead_process_of_a_local_ray_is_reaped(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", "pass", str(tmp_path)], stdout=subprocess.PIPE)
    assert dead.stdout is not None
    with dead.stdout:
        dead.stdout.read()  # it has ended, and nobody knows
    session.end_processes_of(tmp_path)
    assert dead.returncode is not None


def test_a_local_ray_that_never_starts_raises_its_last_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(**settings: Any) -> None:
        raise Exception("the current node timed out during startup")

    monkeypatch.setattr(session, "init_ray", fail)
    with pytest.raises(Exception, match="timed out during startup"):
        session.start_ray(tmp_path)
