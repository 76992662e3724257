"""Starts the application on a Ray cluster, waits until it answers, and stops it."""

from __future__ import annotations

import http.client
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ray import serve
from ray.serve.config import HTTPOptions, gRPCOptions
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from deployments.access import check_access
from deployments.app import APP_NAME, build
from deployments.config import AppConfig, HttpConfig
from deployments.descriptions import forget_all
from deployments.direct import open_url
from deployments.loading import stages
from deployments.placement import num_replicas
from deployments.session import attached_ray, local_ray, uninterrupted
from deployments.telemetry import check_telemetry
from protocol.errors import ConfigError, NotReady

POLL_S = 0.2
HEALTHY_LIMIT_S = 60.0  # from the start of the last replica to the first 200
FAILED = (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY)
SERVICERS = (
    "protocol.pb.inference_pb2_grpc.add_InferenceServicer_to_server",
    "grpc_health.v1.health_pb2_grpc.add_HealthServicer_to_server",
)

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]  # (running replicas, all replicas, what others are loading)


def no_progress(running: int, total: int, loading: str) -> None:
    """Shows no progress."""


@contextmanager
def running(config: AppConfig, *, address: str | None = None, progress: Progress = no_progress) -> Iterator[str]:
    """Starts the application, yields its URL once every model answers, and stops it at the end.

    address: of a Ray cluster; None: starts a local cluster and stops it at the end. Raises ConfigError if the port is
    in use, if keys are missing, or if the cluster already runs the application, NotReady if it cannot start.
    """
    if address is None:
        check_access(config, os.environ)  # on a cluster, the ingress has the keys and the environment
        check_telemetry(config)
        check_port(config.http)  # on a cluster, Serve itself may hold the port
    with local_ray(config) if address is None else attached_ray(address):
        check_absent()
        with serving(config, progress, delete=address is not None) as url:
            yield url


@contextmanager
def serving(config: AppConfig, progress: Progress = no_progress, *, delete: bool) -> Iterator[str]:
    """Deploys on the Ray cluster that this process is connected to, and yields the URL once every model answers.

    delete: whether to delete the application at the end, for a cluster that keeps running.
    """
    start_proxies(config)
    with deployed(config, delete=delete):
        wait_until_running(config, progress)
        url = f"http://{config.http.host}:{config.http.port}"
        wait_until_healthy(url)
        yield url


def start_proxies(config: AppConfig) -> None:
    http, grpc = config.http, config.grpc
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(
        http_options=HTTPOptions(host=http.host, port=http.port),  # the ingress enforces the time limit
        grpc_options=None
        if grpc is None
        else gRPCOptions(
            port=grpc.port,
            grpc_servicer_functions=list(SERVICERS),
            request_timeout_s=grpc.request_timeout_s,
            enable_reflection=grpc.reflection,
        ),
    )


def check_absent() -> None:
    """Raises ConfigError if the application is already on the cluster, because deploying would replace it."""
    if app := serve.status().applications.get(APP_NAME):
        raise ConfigError(
            f"an application {APP_NAME} is on this cluster already ({app.status.value}); stop it where it was "
            "started, or update it with `serve deploy`"
        )


@contextmanager
def deployed(config: AppConfig, *, delete: bool) -> Iterator[None]:
    """Deploys the application; deletes it at the end if asked to. Errors of deleting do not hide earlier ones."""
    serve.run_many(
        [serve.RunTarget(target=build(config), name=APP_NAME, route_prefix="/")],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )
    try:
        yield
    finally:
        if delete:
            with uninterrupted():
                delete_application()


def delete_application() -> None:
    try:
        serve.delete(APP_NAME)
        forget_all()
    except Exception as error:
        logger.warning("the application %s may still be on the cluster: %s", APP_NAME, error)


def wait_until_running(config: AppConfig, progress: Progress) -> None:
    total = num_replicas(config)
    while True:
        app = application()
        states = [state for part in app.deployments.values() for state in part.replica_states.items()]
        progress(sum(count for state, count in states if state == "RUNNING"), total, ", ".join(map(str, stages())))
        if app.status is ApplicationStatus.RUNNING:
            return
        time.sleep(POLL_S)


def application() -> ApplicationStatusOverview:
    """The status of the application. Raises NotReady if it has failed or was deleted."""
    app = serve.status().applications.get(APP_NAME)
    if app is None:
        raise NotReady("the application did not start: somebody deleted it")
    if app.status in FAILED:
        messages = [part.message for part in app.deployments.values() if part.message]
        raise NotReady(f"the application did not start: {reason(messages or [app.message])}")
    return app


def reason(messages: list[str]) -> str:
    """The last line of a replica's traceback, which names the error."""
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if "Error: " in line or "UnsupportedModel: " in line]
    return (errors or lines or ["no reason was given"])[-1]


def wait_until_healthy(url: str, limit_s: float = HEALTHY_LIMIT_S) -> None:
    """Raises NotReady if a replica fails, or if the URL does not answer in time."""
    end = time.monotonic() + limit_s
    while not answers(url):
        application()
        if time.monotonic() > end:
            raise NotReady(
                f"every replica runs, but {url}/ready does not answer after {limit_s:.0f} s; if Serve was already "
                "running, it keeps its host and port, so set http.host and http.port to them"
            )
        time.sleep(POLL_S)


def answers(url: str) -> bool:
    try:
        with open_url(f"{url}/ready", timeout_s=10):
            return True
    except (OSError, http.client.HTTPException):  # URLError and timeouts are OSErrors
        return False


def check_port(options: HttpConfig) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((options.host, options.port))
        except OSError as error:
            raise ConfigError(
                f"{options.host}:{options.port} cannot be used ({error.strerror}); set http.port"
            ) from None
