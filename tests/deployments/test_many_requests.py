"""Thousands of short requests: no process grows, in memory or in descriptors, and nothing of them is left anywhere.

DRAFTPOOL_MANY_REQUESTS says how many (600), DRAFTPOOL_MANY_OUT where the result goes, as JSON and as a table. The plan:
two in three over HTTP, streamed; some cancelled; every fifth with a grammar of its own, more kinds than are kept.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from bench import machine
from bench.workload import HELD_OUT
from cli.prompts import read_prompts
from targets.grammar import KEPT
from tests.deployments.chaos_requests import Ask, Asker, Order
from tests.deployments.demo_models import linked
from tests.deployments.harness import wait_until
from tests.deployments.head import Head
from tests.deployments.served import Served
from tests.deployments.test_chaos import num_open
from tests.resident import MemoryRecorder, numbered

NUM_REQUESTS = int(os.environ.get("DRAFTPOOL_MANY_REQUESTS", "600"))
OUT = os.environ.get("DRAFTPOOL_MANY_OUT")
WARM_SHARE = 0.2  # of the requests, which fill caches
NUM_SAMPLES = 50
UNDER_WAY = 8
NUM_GRAMMARS = 2 * KEPT
SPARE_DESCRIPTORS = 8  # that come and go with connections
PROXY, PROXY_KIB = "ProxyActor", 1.0  # Ray's own, which grew by 0.5 KiB (bench/results/many_requests.md)

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600 + NUM_REQUESTS)]

CONFIG = """
targets:
  - {name: large, path: large, kv_mb: 64, speculation: {policy: fixed, depth: 4, length: 3, deadline_ms: 500}}
  - {name: small, path: small, kv_mb: 64, speculation: {policy: fixed, depth: 2, length: 3, deadline_ms: 500}}
pool: {path: drafter, kv_mb: 64}
http: {port: %d}
grpc: {port: %d}
access: {open: true}
"""


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return linked(tmp_path_factory.mktemp("many"))


@pytest.fixture(scope="module")
def config_text() -> str:
    return CONFIG


class Recorder(MemoryRecorder):
    """And the descriptors of every process."""

    def __init__(self) -> None:
        super().__init__()
        self.descriptors: list[dict[int, int]] = []

    def sample(self, num_done: int) -> None:
        super().sample(num_done)
        held: dict[int, int] = {}
        for pid in self.samples[-1]:
            with suppress(psutil.Error):
                held[pid] = psutil.Process(pid).num_fds()
        self.descriptors.append(held)

    def held(self, base_after: int) -> dict[str, tuple[int, int]]:
        """By process, as `result` names them: descriptors at the base, and the fewest of the last quarter."""
        steady = [pid for pid in self.labels if all(pid in sample for sample in self.samples)]
        names = numbered({pid: self.labels[pid] for pid in steady})
        first = next(index for index, done in enumerate(self.num_done) if done >= base_after)
        last = self.descriptors[-max(len(self.descriptors) // 4, 1) :]
        return {
            names[pid]: (self.descriptors[first][pid], min(sample[pid] for sample in last))
            for pid in steady
            if all(pid in sample for sample in self.descriptors)
        }


def orders(prompts: Sequence[str], count: int, rng: random.Random) -> list[Order]:
    made = []
    for number in range(count):
        fields = {"model": ("large", "small")[number % 2], "prompt": rng.choice(prompts)[:80], "temperature": 0.8}
        fields |= {"seed": number, "max_tokens": rng.randrange(2, 9), "return_token_ids": True}
        shaped = number % 5 == 0
        if shaped:
            fields |= {"structured_outputs": {"regex": f"[a-z]{{1,9}}_{rng.randrange(NUM_GRAMMARS)}"}}
        ask = Ask(number, "grammar" if shaped else "text", fields | ({} if shaped else {"ignore_eos": True}))
        protocol = "http" if shaped or number % 3 else "grpc"
        made.append(Order(ask, protocol, 1 if rng.random() < 0.05 else None))
    return made


def test_nothing_grows_with_the_number_of_requests(served: Served, ray_head: Head) -> None:
    served.wait_until_drafting()
    prompts, recorder = [prompt.text for prompt in read_prompts(HELD_OUT, 0)], Recorder()
    asyncio.run(asked(orders(prompts, NUM_REQUESTS, random.Random(7)), ray_head, recorder))
    wait_until(lambda: num_open(served) == 0)
    served.wait_until_idle()
    base_after = int(WARM_SHARE * NUM_REQUESTS)
    growths, held = recorder.result(base_after), recorder.held(base_after)
    header = ("process", "base, MiB", "end", "growth", "KiB a request", "grows", "descriptors", "at the end")
    rows = [
        (one.process, one.base, one.end, one.growth, one.kib_per_request, one.grows, *held[one.process])
        for one in growths
    ]
    place = machine.describe() | {
        "command": f"DRAFTPOOL_MANY_REQUESTS={NUM_REQUESTS} pytest tests/deployments/test_many_requests.py"
    }
    note = f"{NUM_REQUESTS} requests, base after {base_after}; at the end no sequence, stream or page was held."
    table = machine.markdown(header, rows, note, "", machine.footer(place))
    print(table)  # noqa: T201
    if OUT:
        machine.save(Path(OUT), {"machine": place, "rows": [asdict(row) for row in growths], "held": held}, table)
    assert not [name for name, (base, end) in held.items() if end > base + SPARE_DESCRIPTORS]
    if NUM_REQUESTS >= 5000:  # fewer do not tell growth from caches that fill
        spared = {row.process for row in growths if row.process == PROXY and row.kib_per_request <= PROXY_KIB}
        assert not [row.process for row in growths if row.grows and row.process not in spared]


async def asked(wanted: Sequence[Order], head: Head, recorder: Recorder) -> None:
    """Raises Broken, so every request got an answer."""
    asker, waiting, num_done = Asker(head.url, head.grpc_port, 120.0), iter(wanted), 0
    every = max(len(wanted) // NUM_SAMPLES, 1)

    async def place() -> None:
        nonlocal num_done
        for order in waiting:
            answer = await asker.stream(order)
            assert answer.reason or order.cancel_after
            num_done += 1
            if num_done % every == 0:
                recorder.sample(num_done)

    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(UNDER_WAY):
                tasks.create_task(place())
    finally:
        await asker.close()
