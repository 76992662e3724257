"""The application on a Ray cluster, from its proxies to its first answer, and its end."""

from __future__ import annotations

import http.client
import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ray import serve
from ray.serve.config import HTTPOptions, gRPCOptions
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from deployments.app import APP_NAME, build
from deployments.capacity import num_replicas
from deployments.config import AppConfig, GrpcConfig, HttpConfig
from deployments.direct import opened
from deployments.session import attached_ray, local_ray, uninterrupted
from protocol.errors import ConfigError, NotReady

POLL_S = 0.2
HEALTHY_LIMIT_S = 60.0  # between the last replica's start and the first 200
FAILED = (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY)
SERVICER = "protocol.pb.inference_pb2_grpc.add_InferenceServicer_to_server"

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]  # (replicas that run, replicas in all)


def silent(running: int, total: int) -> None:
    """No progress display."""


@contextmanager
def running(config: AppConfig, *, address: str | None = None, progress: Progress = silent) -> Iterator[str]:
    """Starts the application and yields its URL once every model answers; stops it at the end.

    address: of a Ray cluster; without one, a local cluster is started, and stopped too.
    Raises ConfigError when the port is taken or the cluster has the application already, NotReady when it cannot start.
    """
    if address is None:
        check_port(config.http)  # on a cluster it is Serve itself that may hold it
    with local_ray(config) if address is None else attached_ray(address):
        check_absent()
        with answering(config, progress, delete=address is not None) as url:
            yield url


@contextmanager
def answering(config: AppConfig, progress: Progress = silent, *, delete: bool) -> Iterator[str]:
    """Deploys on the Ray that this process is part of, and yields the URL once every model answers.

    delete: the application at the end, where Ray goes on.
    """
    start_proxies(config)
    with deployed(config, delete=delete):
        wait_until_running(config, progress)
        url = f"http://{config.http.host}:{config.http.port}"
        wait_until_healthy(url)
        yield url


def start_proxies(config: AppConfig) -> None:
    options = config.http
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(
        http_options=HTTPOptions(host=options.host, port=options.port),  # the ingress keeps the time limit
        grpc_options=grpc_options(config.grpc) if config.grpc else None,
    )


def grpc_options(grpc: GrpcConfig) -> gRPCOptions:
    return gRPCOptions(port=grpc.port, grpc_servicer_functions=[SERVICER], request_timeout_s=grpc.request_timeout_s)


def check_absent() -> None:
    """Two of the name would replace each other; which of them should run is for the operator to say."""
    if app := serve.status().applications.get(APP_NAME):
        raise ConfigError(
            f"an application {APP_NAME} is on this cluster already ({app.status.value}); stop it first where it was "
            "started, or bring it up to date with `serve deploy`"
        )


@contextmanager
def deployed(config: AppConfig, *, delete: bool) -> Iterator[None]:
    """Only what was deployed here is deleted at the end, and trouble with that does not hide what went before."""
    deploy(config)
    try:
        yield
    finally:
        if delete:
            with uninterrupted():
                delete_application()


def delete_application() -> None:
    try:
        serve.delete(APP_NAME)
    except Exception as error:
        logger.warning("the application %s may still be on the cluster: %s", APP_NAME, error)


def deploy(config: AppConfig) -> None:
    serve.run_many(
        [serve.RunTarget(target=build(config), name=APP_NAME, route_prefix="/")],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )


def wait_until_running(config: AppConfig, progress: Progress) -> None:
    total = num_replicas(config)
    while True:
        app = application()
        states = [state for part in app.deployments.values() for state in part.replica_states.items()]
        progress(sum(count for state, count in states if state == "RUNNING"), total)
        if app.status is ApplicationStatus.RUNNING:
            return
        time.sleep(POLL_S)


def application() -> ApplicationStatusOverview:
    """Raises NotReady when it has failed, or is no longer there."""
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
    """Raises NotReady when a replica fails after all, or when there is no answer in time."""
    end = time.monotonic() + limit_s
    while not answers(url):
        application()
        if time.monotonic() > end:
            raise NotReady(
                f"every replica runs, but {url}/ready does not answer after {limit_s:.0f} s; a Serve that ran before "
                "keeps its own host and port, so set http.host and http.port to them"
            )
        time.sleep(POLL_S)


def answers(url: str) -> bool:
    try:
        with opened(f"{url}/ready", timeout_s=10):
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
