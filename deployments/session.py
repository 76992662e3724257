"""Connects to Ray: starts a private local cluster that leaves nothing behind, or attaches to a running cluster."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import math
import os
import shutil
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import serve

from deployments.config import AppConfig
from deployments.placement import cpus_needed, resources_needed
from model.cores import usable_cores
from protocol.errors import ConfigError

OBJECT_STORE_BYTES = 150 << 20

# Also set on the nodes of a cluster (k8s/). They halve the time of a chunk through proxy and ingress: messages use gRPC
# instead of the object store, and a replica has one event loop instead of three.
SERVE_SETTINGS = {
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": "67108864",  # so that our API refuses large requests before Serve does
    "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": "16777216",  # of the proxies; Serve's 2 GiB would be read before we are asked
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deployments.proxy.middlewares",
    "grpc_proxy": "",  # or Serve's gRPC would use http_proxy, since no_proxy does not name the node
}
LOCAL_SETTINGS = {
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",  # Serve's 5 s are too short on a busy machine
    # With Ray's 15 a replica has 3 % of a core that anything else here wants; `nice draftpool serve` is nicer.
    "RAY_worker_niceness": "0",
}
START_ATTEMPTS = 3
# Bytes of TMPDIR: the path of a Unix socket has at most 107 bytes, and Ray's ends with
# draftpool-12345678/0/session_2026-11-29_02-54-50_123456_1234567/sockets/plasma_store.
MAX_BASE_BYTES = 22

logger = logging.getLogger(__name__)


@contextmanager
def local_ray(config: AppConfig) -> Iterator[Path]:
    """Starts a local Ray cluster and yields its folder; stops it and deletes the folder at the end."""
    folder = new_folder()
    os.environ.update(SERVE_SETTINGS, **LOCAL_SETTINGS, RAY_USAGE_STATS_ENABLED="0")
    try:
        start_ray(
            folder,
            num_cpus=max(usable_cores(), math.ceil(cpus_needed(config))),
            resources=resources_needed(config),
        )
        yield folder
    finally:
        with uninterrupted():
            stop_ray()
            end_processes_of(folder)
            shutil.rmtree(folder, ignore_errors=True)


def new_folder(fallback: str = "/tmp") -> Path:
    """A new folder in TMPDIR, or in `fallback` if the paths of Ray's Unix sockets would be too long there.

    Raises ConfigError if it cannot be created.
    """
    temporary = tempfile.gettempdir()
    base = temporary if len(os.fsencode(temporary)) <= MAX_BASE_BYTES else fallback
    try:
        return Path(tempfile.mkdtemp(prefix="draftpool-", dir=base))
    except OSError as error:
        raise ConfigError(
            f"cannot create a folder for Ray's sockets in {base} ({error.strerror}); set TMPDIR to a writable folder "
            f"whose path has at most {MAX_BASE_BYTES} bytes"
        ) from None


def start_ray(folder: Path, **settings: Any) -> None:
    """Starts Ray, with retries: on a busy machine its node may miss Ray's limit of 30 s."""
    for attempt in range(START_ATTEMPTS):
        try:
            init_ray(
                address="local",
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=str(folder / str(attempt)),
                **settings,
            )
            return
        except Exception as error:
            if attempt + 1 == START_ATTEMPTS:
                raise
            logger.warning("a local Ray did not start (%s); trying again", error)
        end_processes_of(folder)


def end_processes_of(folder: Path) -> None:
    """Kills and reaps the processes that a Ray in this folder has left behind."""
    for popen in gc.get_objects():
        if issubclass(type(popen), subprocess.Popen) and popen.returncode is None and str(folder) in str(popen.args):
            popen.kill()
            popen.wait(timeout=10)


def init_ray(**settings: Any) -> None:
    """Calls ray.init without output. Restores the SIGTERM handler, because Ray's ends the process without cleanup."""
    handler = signal.getsignal(signal.SIGTERM)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **settings)
    signal.signal(signal.SIGTERM, handler)


def stop_ray() -> None:
    """Stops Serve and Ray without the messages that they print on the way."""
    with contextlib.redirect_stdout(io.StringIO()):
        if ray.is_initialized():  # serve.shutdown would start Ray again
            stop_serve: Callable[[], None] = serve.shutdown
            stop_serve()
        ray.shutdown(wait_for_processes=True)


@contextmanager
def attached_ray(address: str) -> Iterator[None]:
    """Connects to a running cluster. Raises ConfigError if none answers."""
    try:
        init_ray(address=address)
    except ConnectionError as error:
        raise ConfigError(f"no Ray cluster answers at {address}: {error}") from None
    try:
        yield
    finally:
        with uninterrupted():
            ray.shutdown()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignores SIGINT and SIGTERM, so that a second Ctrl-C does not interrupt the cleanup."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
