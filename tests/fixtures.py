from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvloop

from tests.deployments.harness import LoopThread

if TYPE_CHECKING:
    from tests.deployments.head import Head
    from tests.deployments.served import Served

CONFIG = """
targets:
  - name: large
    path: large
    dtype: fp32
    page_size: 16
    kv_mb: 8
    max_batch: 4
    count_tokens: true
    max_queue: 2
    speculation: {policy: fixed, depth: 4, length: 4, deadline_ms: 500}
  - name: small
    path: small
    dtype: fp32
    page_size: 16
    kv_mb: 8
    max_batch: 4
    max_queue: 2
    speculation: {policy: fixed, depth: 2, length: 3, deadline_ms: 500}
pool: {path: drafter, num_replicas: 2, dtype: fp32, page_size: 16, kv_mb: 8}
http: {port: %d}
grpc: {port: %d}
access: {open: true}
"""


@pytest.fixture(params=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> Iterator[LoopThread]:
    """Ray's workers run uvloop, everything else asyncio's own loop."""
    made = LoopThread(uvloop.new_event_loop() if request.param == "uvloop" else asyncio.new_event_loop())
    yield made
    made.close()


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.deployments.checkpoints import make_family

    return make_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def config_text() -> str:
    """With places for two ports; a module may have its own."""
    return CONFIG


@pytest.fixture(scope="package")
def ray_head() -> Iterator[Head]:
    """One cluster for all: a module deploys its application there and deletes it. It stops with the package's tests."""
    from tests.deployments.head import head

    with head() as made:
        yield made


@pytest.fixture(scope="module")
def served(family: Path, config_text: str, ray_head: Head) -> Iterator[Served]:
    """The application on the cluster, which is deleted before another module deploys its own."""
    from deployments import cluster
    from deployments.config import load_config
    from tests.deployments.served import Served

    path = family / "app.yaml"
    path.write_text(config_text % (ray_head.http_port, ray_head.grpc_port))
    config = load_config(path)
    app = Served(config, ray_head.url)

    def watch(running: int, total: int, loading: str) -> None:
        app.loading_at_start.append(loading)
        if running < total:
            app.statuses_at_start.append(app.health(timeout=1))

    with cluster.running(config, address=ray_head.address, progress=watch):
        yield app
        app.client.close()
