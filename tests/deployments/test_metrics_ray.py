"""/metrics of an ingress of two replicas under a real Ray Serve: which is asked makes no difference, nor how often."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from ray import serve

from deployments.app import APP_NAME
from deployments.config import IngressConfig
from deployments.config_access import AccessConfig
from deployments.ingress import Ingress
from deployments.session import attached_ray
from tests.api.api_twins import tiny_tokenizer
from tests.api.scrape import scrape_of
from tests.deployments.harness import wait_until
from tests.deployments.head import Head
from tests.deployments.ingress_twins import COUNT, NUM_TOKENS, ScriptedTarget

pytestmark = pytest.mark.ray


class SlowToTell(ScriptedTarget):
    """Its steps are how often it was asked for its counts."""

    _num_asked, _takes_s = 0, 0.0

    async def slow(self, takes_s: float) -> None:
        self._takes_s = takes_s

    async def stats(self) -> dict[str, int]:
        self._num_asked += 1
        await asyncio.sleep(self._takes_s)
        return await super().stats() | {"num_steps": self._num_asked}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, ray_head: Head) -> Iterator[httpx.Client]:
    """Of the application, which is up as long as the fixture is."""
    path = str(tmp_path_factory.mktemp("tokenizer"))
    tiny_tokenizer().save_pretrained(path)
    options: dict[str, Any] = {"max_ongoing_requests": 50, "ray_actor_options": {"num_cpus": 0}}
    with attached_ray(ray_head.address), httpx.Client(base_url=ray_head.url, timeout=30) as client:
        target = serve.deployment(SlowToTell).options(name="target-tiny", **options).bind()
        ingress = Ingress.options(num_replicas=2, **options).bind(
            {"tiny": target}, {"tiny": path}, IngressConfig(num_replicas=2), access=AccessConfig(open=True)
        )
        serve.run(ingress, name=APP_NAME)
        wait_until(lambda: client.get("/ready").status_code == 200)
        yield client
        serve.delete(APP_NAME)


def test_every_replica_tells_the_counts_of_both(client: httpx.Client) -> None:
    names: set[str] = set()
    num_asked = 0
    while len(names) < 2 or num_asked < 20:
        assert num_asked < 200, "one replica gets all requests"
        assert client.post("/v1/completions", json={"model": "tiny", "prompt": [COUNT]}).status_code == 200
        num_asked += 1
        found = scrape_of(client.get("/metrics"))
        by_replica = found.by("draftpool_request_success_total", "replica")
        names |= by_replica.keys()
        assert sum(by_replica.values()) == num_asked, "whoever is asked tells all"
    assert found.value("draftpool_generation_tokens_total", model="tiny") == num_asked * NUM_TOKENS
    assert len(names) == 2
    assert found.value("draftpool_num_requests_running", model="tiny") == 0
    assert len(found.by("draftpool_build_info", "replica")) == 2


async def test_scrapes_that_come_together_are_collected_once_and_who_leaves_takes_nothing_from_the_others(
    client: httpx.Client, ray_head: Head
) -> None:
    before = scrape_of(client.get("/metrics")).value("draftpool_steps_total")
    await serve.get_deployment_handle("target-tiny", APP_NAME).slow.remote(0.8)
    async with httpx.AsyncClient(base_url=ray_head.url, timeout=30, trust_env=False) as many:
        scrapes = [asyncio.create_task(many.get("/metrics")) for _ in range(40)]
        await asyncio.sleep(0.4)
        for leaving in scrapes[:30]:
            leaving.cancel()
        told = [scrape_of(response) for response in await asyncio.gather(*scrapes[30:])]
    assert [found.value("draftpool_replicas", model="tiny") for found in told] == [1] * 10
    assert scrape_of(client.get("/metrics")).value("draftpool_steps_total") <= before + 12, "two replicas, few rounds"
