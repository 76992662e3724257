"""Four times the requests that a target can answer: those let in begin in time, the rest are told so at once, and the
other target does not notice.

DRAFTPOOL_OVERLOAD_OUT names a file for the result, as JSON and as a table.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import quantiles

import pytest

from bench import machine
from bench.workload import HELD_OUT
from cli.prompts import read_prompts
from tests.deployments.demo_models import linked
from tests.deployments.head import Head
from tests.deployments.overload import Caller, Told
from tests.deployments.served import Served

OUT = os.environ.get("DRAFTPOOL_OVERLOAD_OUT")
TIMES = 4
NUM_REQUESTS = int(os.environ.get("DRAFTPOOL_OVERLOAD_REQUESTS", "200"))
WAIT_S = 5.0  # allowed until the first token
REFUSED_S = 0.1

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

CONFIG = f"""
targets:
  - {{name: small, path: small, kv_mb: 64, max_batch: 4, max_wait_s: {WAIT_S}}}
  - {{name: large, path: large, kv_mb: 64, max_batch: 4, max_wait_s: {WAIT_S}}}
http: {{port: %d}}
grpc: {{port: %d}}
access: {{open: true}}
"""


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return linked(tmp_path_factory.mktemp("overload"))


@pytest.fixture(scope="module")
def config_text() -> str:
    return CONFIG


def test_those_let_in_begin_in_time_and_the_rest_are_refused_at_once(served: Served, ray_head: Head) -> None:
    capacity, flood, calm = asyncio.run(played(ray_head))
    report(capacity, flood, calm)
    assert not [told for told in [*flood, *calm] if told.failed]
    refused = [told for told in flood if told.refused_s is not None]
    assert len(refused) > len(flood) / 4, "it was too much"
    assert all(1 <= int(told.retry_after or 0) <= 60 for told in refused)
    assert {told.protocol for told in refused} == {"http", "grpc"}
    begun = [told.first_s for told in flood if told.first_s is not None]
    assert sum(first_s <= 1.5 * WAIT_S for first_s in begun) >= 0.9 * len(begun), "also where others use the machine"
    assert all(told.whole_s for told in calm), "nobody of the other target was refused, or waited in vain"
    served.wait_until_idle()


async def played(head: Head) -> tuple[float, list[Told], list[Told]]:
    """What the target answers a second, and what was told under four times as much, of it and of the other."""
    caller = Caller(head.url, head.grpc_port, [prompt.text for prompt in read_prompts(HELD_OUT, 0)], 5)
    try:
        await caller.in_a_loop(4, 12, "large")
        await caller.in_a_loop(2, 4, "small")
        capacity = await caller.in_a_loop(4, 30, "large")
        rate = TIMES * capacity
        flood = asyncio.create_task(caller.at_a_rate(rate, NUM_REQUESTS, ["large"]))
        calm = await caller.at_a_rate(0.5, max(2, int(0.4 * NUM_REQUESTS / rate)), ["small"])
        return capacity, await flood, calm
    finally:
        await caller.close()


def report(capacity: float, flood: Sequence[Told], calm: Sequence[Told]) -> None:
    begun = [told.first_s for told in flood if told.first_s is not None]
    refused = [told.refused_s for told in flood if told.refused_s is not None]
    in_time = sum(first_s <= WAIT_S for first_s in begun)
    at_once = sum(refused_s <= REFUSED_S for refused_s in refused)
    rows = [
        ("let in: first token", f"{WAIT_S:g} s", f"{in_time} of {len(begun)}", *spread(begun)),
        ("refused", f"{REFUSED_S:g} s", f"{at_once} of {len(refused)}", *spread(refused)),
        ("the other target: first token", "", "", *spread([told.first_s or 0.0 for told in calm])),
    ]
    command = f"DRAFTPOOL_OVERLOAD_REQUESTS={NUM_REQUESTS} pytest tests/deployments/test_overload.py"
    place = machine.describe() | {"command": command}
    header = ("of the flood", "limit", "within it", "median, s", "99 %", "longest")
    note = f"{len(flood)} requests at {TIMES} times the {capacity:.1f} a second that 4 under way at a time get."
    table = machine.markdown(header, rows, note, "", machine.footer(place))
    print(table)  # noqa: T201
    if OUT:
        told = {"flood": [asdict(one) for one in flood], "calm": [asdict(one) for one in calm]}
        machine.save(Path(OUT), {"machine": place, "capacity": capacity} | told, table)


def spread(seconds: Sequence[float]) -> tuple[str, str, str]:
    if len(seconds) < 2:
        return ("", "", "")
    cuts = quantiles(seconds, n=100)
    return f"{cuts[49]:.3f}", f"{cuts[98]:.3f}", f"{max(seconds):.3f}"
