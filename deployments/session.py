"""A Ray to run on: a private local one that leaves nothing behind, or a cluster that runs already."""

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

from deployments.capacity import cpus_needed, resources_needed
from deployments.config import AppConfig
from model.cores import usable_cores
from protocol.errors import ConfigError

OBJECT_STORE_BYTES = 150 << 20

# What is set on the nodes of a cluster too (k8s/): a chunk then crosses proxy and ingress for half the time. Messages
# go by gRPC rather than through the object store, and a replica has one event loop rather than three that wake another.
SERVE_SETTINGS = {
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(64 << 20),  # so that we say what is too large, and not Serve
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deployments.proxy.middlewares",
    "grpc_proxy": "",  # Serve's gRPC would go through http_proxy, whose no_proxy does not name the node; hubs still may
}
PATIENCE = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30"}  # on a busy machine a proxy does not start in Serve's 5 s
START_ATTEMPTS = 3
# Of the path of a Unix socket, 107 bytes: without draftpool-12345678/0/session_2026-11-29_02-54-50_123456_1234567
# and sockets/plasma_store in it.
LONGEST_BASE = 22

logger = logging.getLogger(__name__)


@contextmanager
def local_ray(config: AppConfig) -> Iterator[Path]:
    """A Ray of our own, in a folder of its own, which it yields."""
    folder = new_folder()
    os.environ.update(SERVE_SETTINGS, **PATIENCE, RAY_USAGE_STATS_ENABLED="0")
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


def new_folder(elsewhere: str = "/tmp") -> Path:
    """Where the paths of Ray's Unix sockets are short enough: in TMPDIR, or else elsewhere. Raises ConfigError."""
    asked = tempfile.gettempdir()
    base = asked if len(os.fsencode(asked)) <= LONGEST_BASE else elsewhere
    try:
        return Path(tempfile.mkdtemp(prefix="draftpool-", dir=base))
    except OSError as error:
        raise ConfigError(
            f"no folder for Ray's sockets can be made in {base} ({error.strerror}); set TMPDIR to a folder that can be "
            f"written and whose path has {LONGEST_BASE} bytes at most"
        ) from None


def start_ray(folder: Path, **settings: Any) -> None:
    """Ray gives its own node 30 s to come up and then raises a bare Exception, which a busy machine can reach."""
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
    """What a Ray in this folder has left running, or dead and not waited for: Ray forgets them itself."""
    for popen in gc.get_objects():
        if issubclass(type(popen), subprocess.Popen) and popen.returncode is None and names(popen.args, folder):
            popen.kill()
            popen.wait(timeout=10)


def names(command: Any, folder: Path) -> bool:
    return isinstance(command, list) and any(str(folder) in str(word) for word in command)


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
    """Raises ConfigError when no cluster answers."""
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
    """A second Ctrl-C must not leave half a cluster behind."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
