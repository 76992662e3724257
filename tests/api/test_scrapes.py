"""Scrapes that pile up, on a real socket: one collection for all of them, and requests are answered meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

import httpx

from api.single_flight import BOUNDS
from tests.api.api_client import COMPLETION, TEXT, error_of
from tests.api.api_twins import ScriptedBackend, says
from tests.api.scrape import scrape_of
from tests.bench.http_server import http_server

NUM_SCRAPES = 100


class Starved(ScriptedBackend):
    """Its replicas tell nothing until they are let go."""

    def __init__(self) -> None:
        super().__init__(says(TEXT))
        self.go, self.num_asked = threading.Event(), 0

    async def stats(self) -> Mapping[str, Any]:
        self.num_asked += 1
        assert await asyncio.to_thread(self.go.wait, 60)
        return await super().stats()


async def test_scrapes_that_pile_up_share_a_collection_and_requests_go_on() -> None:
    backend = Starved()
    limits = httpx.Limits(max_connections=None)
    with http_server(backend) as url:
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits, trust_env=False) as client:
            scrapes = [asyncio.create_task(client.get("/metrics")) for _ in range(NUM_SCRAPES)]
            ended = asyncio.as_completed(scrapes)
            refused = [await next(ended) for _ in range(NUM_SCRAPES - BOUNDS.most)]
            for response in refused:
                assert error_of(response, 429)["code"] == "rate_limit_exceeded"
                assert response.headers["retry-after"] == "1"
            assert (await client.post("/v1/completions", json=COMPLETION)).status_code == 200
            assert (await client.get("/health")).status_code == 200
            backend.go.set()
            told = await asyncio.gather(*scrapes)
            assert Counter(response.status_code for response in told) == {200: BOUNDS.most, 429: len(refused)}
            assert backend.num_asked <= 2, "one, and one for those that came more than a second after it began"
            again = scrape_of(await client.get("/metrics"))
            assert again.value("draftpool_http_responses_total", route="/metrics", status="200") == BOUNDS.most
            assert again.value("draftpool_request_success_total") == 1


async def test_scrapes_in_both_formats_share_a_collection() -> None:
    backend = Starved()
    with http_server(backend) as url:
        async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
            formats = ("", "application/openmetrics-text; version=1.0.0") * 4
            scrapes = [asyncio.create_task(client.get("/metrics", headers={"accept": each})) for each in formats]
            while backend.num_asked == 0:
                await asyncio.sleep(0.01)
            backend.go.set()
            told = await asyncio.gather(*scrapes)
    for response in told[::2]:
        assert scrape_of(response).value("draftpool_build_info") == 1
    for response in told[1::2]:
        assert response.headers["content-type"].startswith("application/openmetrics-text")
        assert response.text.endswith("# EOF\n")
    assert backend.num_asked <= 2
