"""The application on a Ray cluster: a private local one that leaves nothing behind, or one that runs already."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import shutil
import signal
import socket
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.config import HTTPOptions, gRPCOptions
from ray.serve.schema import ApplicationStatus

from deployments.app import APP_NAME, build
from deployments.config import AppConfig, GrpcConfig, HttpConfig, Placement, Replicas
from protocol.errors import ConfigError, NotReady

OBJECT_STORE_BYTES = 150 << 20
POLL_S = 0.2
SERVICER = "protocol.pb.inference_pb2_grpc.add_InferenceServicer_to_server"

Progress = Callable[[int, int], None]  # (replicas that run, replicas in all)


def silent(running: int, total: int) -> None:
    """No progress display."""


@contextmanager
def running(config: AppConfig, *, address: str | None = None, progress: Progress = silent) -> Iterator[str]:
    """Starts the application and yields its URL once every model answers; stops it at the end.

    address: of a Ray cluster; without one, a local cluster is started, and stopped too.
    Raises ConfigError when the port is taken, NotReady when a replica cannot start.
    """
    with local_ray(config) if address is None else attached_ray(address):
        start_proxies(config)
        deploy(config)
        wait_until_running(config, progress)
        url = f"http://{config.http.host}:{config.http.port}"
        wait_until_healthy(url)
        yield url


@contextmanager
def local_ray(config: AppConfig) -> Iterator[Path]:
    """A Ray of our own, in a folder of its own, which it yields. Unix sockets inside keep that path short."""
    folder = Path(tempfile.mkdtemp(prefix="draftpool-"))
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        init_ray(
            address="local",
            num_cpus=max(os.cpu_count() or 1, math.ceil(cpus_needed(config))),
            resources=resources_needed(config),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=str(folder),
        )
        yield folder
    finally:
        with uninterrupted():
            stop_ray()
            shutil.rmtree(folder, ignore_errors=True)


def init_ray(**settings: Any) -> None:
    """Quietly, and leaving SIGTERM to whoever had it: Ray's own handler ends the process without any clean-up."""
    handler = signal.getsignal(signal.SIGTERM)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **settings)
    signal.signal(signal.SIGTERM, handler)


def stop_ray() -> None:
    """Without the messages by which Ray's own parts miss each other on the way out."""
    with contextlib.redirect_stdout(io.StringIO()):
        if ray.is_initialized():  # serve.shutdown would start Ray again
            stop_serve: Callable[[], None] = serve.shutdown
            stop_serve()
        ray.shutdown(wait_for_processes=True)


@contextmanager
def attached_ray(address: str) -> Iterator[None]:
    init_ray(address=address)
    try:
        yield
    finally:
        with uninterrupted():
            serve.delete(APP_NAME)
            ray.shutdown()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """A second Ctrl-C must not leave half a cluster behind."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start_proxies(config: AppConfig) -> None:
    http = config.http
    check_port(http)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(
        http_options=HTTPOptions(host=http.host, port=http.port, request_timeout_s=http.request_timeout_s),
        grpc_options=grpc_options(config.grpc) if config.grpc else None,
    )


def grpc_options(grpc: GrpcConfig) -> gRPCOptions:
    return gRPCOptions(port=grpc.port, grpc_servicer_functions=[SERVICER], request_timeout_s=grpc.request_timeout_s)


def deploy(config: AppConfig) -> None:
    serve.run_many(
        [serve.RunTarget(target=build(config), name=APP_NAME, route_prefix="/")],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )


def wait_until_running(config: AppConfig, progress: Progress) -> None:
    total = num_replicas(config)
    while True:
        app = serve.status().applications[APP_NAME]
        states = [state for part in app.deployments.values() for state in part.replica_states.items()]
        progress(sum(count for state, count in states if state == "RUNNING"), total)
        if app.status is ApplicationStatus.RUNNING:
            return
        if app.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
            messages = [part.message for part in app.deployments.values() if part.message]
            raise NotReady(f"the application did not start: {reason(messages or [app.message])}")
        time.sleep(POLL_S)


def reason(messages: list[str]) -> str:
    """The last line of a replica's traceback, which names the error."""
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if "Error: " in line or "UnsupportedModel: " in line]
    return (errors or lines or ["no reason was given"])[-1]


def wait_until_healthy(url: str) -> None:
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=10):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(POLL_S)


def check_port(http: HttpConfig) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((http.host, http.port))
        except OSError as error:
            raise ConfigError(f"{http.host}:{http.port} cannot be used ({error.strerror}); set http.port") from None


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def num_replicas(config: AppConfig) -> int:
    return config.ingress.num_replicas + sum(placement.num_replicas for placement in placements(config))


def cpus_needed(config: AppConfig) -> float:
    models = sum(placement.threads * placement.num_replicas for placement in placements(config))
    return models + config.ingress.num_cpus * config.ingress.num_replicas


def resources_needed(config: AppConfig) -> dict[str, float]:
    """Custom resources mean nothing on one machine: there is enough of each."""
    needed: Counter[str] = Counter()
    parts: list[Replicas] = [*placements(config), config.ingress]
    for part in parts:
        for name, amount in part.resources.items():
            needed[name] += math.ceil(amount * part.num_replicas)
    return {name: float(amount) for name, amount in needed.items()}


def placements(config: AppConfig) -> list[Placement]:
    return [*config.targets, *([config.pool] if config.pool else [])]
