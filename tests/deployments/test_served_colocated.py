"""Targets with drafters of their own, on a real local Ray cluster: the plain loop's text, and no pool."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from protocol.request import SamplingParams
from tests.deployments.harness import wait_until
from tests.deployments.served import Served, expected, plain_engine

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SAMPLED = SamplingParams(temperature=0.8, seed=1234)


@pytest.fixture(scope="module")
def config_text() -> str:
    return """
placement: colocated
targets:
  - name: large
    path: large
    dtype: fp32
    page_size: 16
    kv_mb: 8
    max_batch: 4
    speculation: {policy: fixed, depth: 4, length: 4, deadline_ms: 500}
  - {name: small, path: small, dtype: fp32, page_size: 16, kv_mb: 8, max_batch: 2, speculation: {deadline_ms: 500}}
pool: {path: drafter, dtype: fp32, page_size: 16, kv_mb: 8}
http: {port: %d}
grpc: {port: %d}
access: {open: true}
"""


def test_a_target_that_drafts_for_itself_gives_the_text_of_the_plain_loop(served: Served, family: Path) -> None:
    with plain_engine(family / "large") as oracle:
        wanted = expected(oracle, 64, SAMPLED)
    with ThreadPoolExecutor(3) as threads:
        answers = [threads.submit(served.tokens, "large", SAMPLED, 64) for _ in range(3)]
        assert {answer.result() for answer in answers} == {wanted}
    stats = served.target("large", "stats")
    assert 0 < stats["num_accepted"] <= stats["num_proposed"]
    told = served.target("large", "describe")
    assert (told["draft_replica"], told["exits"]) == (told["incarnation"], (2, 4))
    wait_until(lambda: served.target("large", "stats")["num_running"] == 0)
    assert served.get("/debug/stats")["pool"] == []


def test_a_colocated_target_chooses_by_the_costs_of_its_own_drafter(served: Served, family: Path) -> None:
    with plain_engine(family / "small") as oracle:
        wanted = expected(oracle, 64, SAMPLED)
    assert served.tokens("small", SAMPLED, 64) == wanted
    (router,) = served.get("/debug/router")["small"]
    assert {arm["arm"] for arm in router["arms"]} == {"off", "depth 2", "depth 4"}
