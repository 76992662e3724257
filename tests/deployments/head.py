"""A Ray cluster with Serve and its proxies, for all tests that attach to one.

`python -m tests.deployments.head HTTP_PORT GRPC_PORT` prints the cluster's address, and ends it when its input ends.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from deployments.cluster import start_proxies
from deployments.config import AppConfig
from deployments.session import local_ray
from link.listening import free_port

NUM_CPUS = 16  # as Ray counts: more than any application of a test asks for


@dataclass(frozen=True)
class Head:
    address: str
    http_port: int
    grpc_port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"


@contextmanager
def head() -> Iterator[Head]:
    """In a process of its own, which ends with this one however that comes about."""
    ports = free_port(), free_port()
    command = [sys.executable, "-m", "tests.deployments.head", *map(str, ports)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, "the cluster did not start; its last words are in what was captured of stderr"
        yield Head(address, *ports)


def main(http_port: str, grpc_port: str) -> None:
    values: dict[str, Any] = {"targets": [{"name": "none", "path": "none"}], "ingress": {"num_cpus": NUM_CPUS}}
    ports = {"http": {"port": int(http_port)}, "grpc": {"port": int(grpc_port)}}
    config = AppConfig.model_validate(values | ports)
    with local_ray(config):
        start_proxies(config)
        sys.stdout.write(f"{ray.get_runtime_context().gcs_address}\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
