"""A flood brings a replica of the target and of the pool, calm takes them away, and no text is lost or wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deployments import cluster
from deployments.config import load_config
from link.listening import free_port
from protocol.request import SamplingParams
from targets.engine import Engine
from tests.deployments.harness import wait_until
from tests.deployments.served import Served, expected

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

SAMPLED = SamplingParams(temperature=0.8, seed=1234)
NUM_TOKENS = 300
CONFIG = """
targets:
  - name: large
    path: large
    dtype: fp32
    page_size: 16
    kv_mb: 8
    max_batch: 4
    autoscaling: {max_replicas: 2, up_after_s: 0.5, down_after_s: 2}
    speculation: {policy: fixed, depth: 4, length: 4, deadline_ms: 500}
pool:
  path: drafter
  dtype: fp32
  page_size: 16
  kv_mb: 8
  autoscaling: {max_replicas: 2, busy: 0.02, calm: 0.01, up_after_s: 0.5, down_after_s: 2}
http: {port: %d}
"""


@pytest.fixture
def scaled(family: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """On a cluster of its own, whose replicas tell their loads every half second."""
    for teller in ("REPLICA", "HANDLE"):
        monkeypatch.setenv(f"RAY_SERVE_{teller}_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "0.5")
    path = family / "scaled.yaml"
    path.write_text(CONFIG % free_port())
    config = load_config(path)
    with cluster.running(config) as url:
        app = Served(config, url)
        app.wait_until_drafting()
        yield app
        app.client.close()


def num_replicas(app: Served) -> tuple[int, int]:
    return len(app.targets("large", "describe")), len(app.pool())


def test_a_flood_adds_replicas_and_calm_takes_them_away_without_a_lost_text(
    scaled: Served, oracles: dict[str, Engine]
) -> None:
    oracle = expected(oracles["large"], NUM_TOKENS, SAMPLED)
    enough = threading.Event()

    def ask_until(event: threading.Event) -> int:
        count = 0
        while not event.is_set():
            assert scaled.tokens("large", SAMPLED, NUM_TOKENS) == oracle
            count += 1
        return count

    assert num_replicas(scaled) == (1, 1)
    with ThreadPoolExecutor(10) as threads:
        flood = [threads.submit(ask_until, enough) for _ in range(10)]
        wait_until(lambda: num_replicas(scaled) == (2, 2) or any(one.done() for one in flood), 240)
        assert num_replicas(scaled) == (2, 2)
        enough.set()
        assert all(one.result(timeout=120) for one in flood)
        calm = threading.Event()
        trickle = threads.submit(ask_until, calm)
        wait_until(lambda: num_replicas(scaled)[0] == 1 or trickle.done(), 240)
        calm.set()
        assert trickle.result(timeout=120), "one text at a time, while a replica went"
    wait_until(lambda: num_replicas(scaled) == (1, 1), 240)
    scaled.wait_until_idle()
