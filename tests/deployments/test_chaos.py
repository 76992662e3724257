"""Chaos: requests of all kinds over both protocols, while replicas of every role are killed every few seconds.

DRAFTPOOL_CHAOS_REQUESTS says how many (100), DRAFTPOOL_CHAOS_OUT where the result goes, as JSON and as a table.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest
import torch

from bench import machine
from bench.workload import HELD_OUT
from cli.prompts import read_prompts
from model.tokenizer import load_tokenizer
from protocol.request import GenerateRequest, SamplingParams, StopRules
from router.policy import Off
from targets.complete import complete
from targets.engine import Engine, EngineConfig
from targets.model import load_target
from tests.deployments.chaos_kills import INGRESS, Kill, Killer
from tests.deployments.chaos_requests import Answer, Ask, Asker, Broken, Order, Refused, asks, orders, texts_of
from tests.deployments.demo_models import NAMES, linked
from tests.deployments.harness import wait_until
from tests.deployments.head import Head
from tests.deployments.served import Served

NUM_REQUESTS = int(os.environ.get("DRAFTPOOL_CHAOS_REQUESTS", "100"))
OUT = os.environ.get("DRAFTPOOL_CHAOS_OUT")
SEED = 20261130
NUM_TEXTS = 40  # asked for again and again
UNDER_WAY = 8
PAUSE_S = (3.0, 7.0)  # between kills
LIMIT_S = 180.0  # for one request, and for a replica to come back
NOTED_S = 3.0  # in which Serve notes that a replica is dead

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600 + 8 * NUM_REQUESTS)]

CONFIG = """
targets:
  - {name: large, path: large, num_replicas: 2, kv_mb: 64, speculation: {policy: fixed, depth: 4, length: 4, deadline_ms: 500}}
  - {name: small, path: small, kv_mb: 64, speculation: {policy: fixed, depth: 2, length: 3, deadline_ms: 500}}
pool: {path: drafter, num_replicas: 2, kv_mb: 64}
ingress: {num_replicas: 2}
http: {port: %d}
grpc: {port: %d}
access: {open: true}
"""  # noqa: E501
TEMPLATE = (
    "{% if tools %}Call a tool within <tool_call> and </tool_call>: {{ tools }}\n{% endif %}"
    "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's code models, with a chat template that knows tools."""
    models, folder = linked(tmp_path_factory.mktemp("models")), tmp_path_factory.mktemp("chaos")
    for name in NAMES:
        shutil.copytree(models / name, folder / name)
        path = folder / name / "tokenizer_config.json"
        kept = [line for line in path.read_text().splitlines() if '"chat_template"' not in line]
        path.write_text("\n".join(kept))
        (folder / name / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def config_text() -> str:
    return CONFIG


@dataclass
class Outcome:
    """What became of an order. breaks: why earlier tries did not end, each as an ingress died. num_refused: times that
    it was asked to come back, before anything of the answer came.
    """

    kind: str
    protocol: str
    model: str
    end: str = ""
    began_s: float = 0.0
    ended_s: float = 0.0
    longest_pause_s: float = 0.0
    num_refused: int = 0
    breaks: list[str] = field(default_factory=list)


def test_no_text_is_wrong_and_no_stream_lost_whoever_dies(served: Served, family: Path, ray_head: Head) -> None:
    served.wait_until_drafting()
    rng = random.Random(SEED)
    prompts = [prompt.text for prompt in read_prompts(HELD_OUT, 0)]
    made = asks(("large", "small"), prompts, NUM_TEXTS, rng)
    right = asyncio.run(undisturbed(made, ray_head))
    assert_are_the_plain_loops(family, texts_of(made), right)
    killer = Killer(served, rng)
    outcomes: list[Outcome] = []
    work = threading.Thread(
        target=lambda: outcomes.extend(
            asyncio.run(disturbed(orders(made, NUM_REQUESTS, rng), right, killer.kills, ray_head))
        )
    )
    work.start()
    killer.run_while(work.is_alive, PAUSE_S, LIMIT_S)
    work.join()
    report(outcomes, killer.kills)
    assert len(outcomes) == NUM_REQUESTS, "the client itself failed"
    failed = [outcome for outcome in outcomes if outcome.end not in ("right", "cancelled")]
    assert not failed, failed[:5]
    wait_until(lambda: served.health() == 200)
    served.wait_until_idle()
    wait_until(lambda: num_open(served) == 0)


def num_open(served: Served) -> float:
    """Completions that ingresses think they are making."""
    with urllib.request.urlopen(f"{served.url}/metrics") as response:
        text = response.read().decode()
    return sum(float(value) for value in re.findall(r"^draftpool_open_requests\{.*\} (\S+)$", text, re.MULTILINE))


async def undisturbed(made: Sequence[Ask], head: Head) -> dict[int, Answer]:
    """By number, whole and one at a time."""
    asker = Asker(head.url, head.grpc_port, LIMIT_S)
    try:
        return {ask.number: await asker.whole(ask) for ask in made}
    finally:
        await asker.close()


def assert_are_the_plain_loops(family: Path, made: Sequence[Ask], right: dict[int, Answer]) -> None:
    for name in ("large", "small"):
        model = load_target(family / name, dtype=torch.bfloat16, num_positions=2048, page_size=32)
        engine = Engine(model, Off(), None, EngineConfig())
        engine.start()
        try:
            for ask in (ask for ask in made if ask.fields["model"] == name):
                assert plain(engine, family / name, ask) == tuple(right[ask.number].token_ids), ask
        finally:
            engine.stop()


def plain(engine: Engine, directory: Path, ask: Ask) -> tuple[int, ...]:
    ids = tuple(load_tokenizer(directory).encode(ask.fields["prompt"]))
    sampling = SamplingParams(temperature=ask.fields["temperature"], seed=ask.fields["seed"])
    (done,) = complete(engine, [GenerateRequest("plain", ids, sampling, StopRules(ask.fields["max_tokens"]))])
    return done.token_ids


async def disturbed(
    wanted: Sequence[Order], right: dict[int, Answer], kills: Sequence[Kill], head: Head
) -> list[Outcome]:
    asker, waiting = Asker(head.url, head.grpc_port, LIMIT_S), iter(wanted)
    outcomes: list[Outcome] = []

    async def place() -> None:
        for order in waiting:
            outcomes.append(await outcome_of(order, right[order.ask.number], asker, kills))

    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(UNDER_WAY):
                tasks.create_task(place())
    finally:
        await asker.close()
    return outcomes


async def outcome_of(order: Order, right: Answer, asker: Asker, kills: Sequence[Kill]) -> Outcome:
    """A stream that breaks while an ingress dies is asked for again, as a client of a dead server does."""
    outcome = Outcome(order.ask.kind, order.protocol, order.ask.fields["model"], began_s=time.monotonic())
    while not outcome.end:
        tried_s = time.monotonic()
        try:
            answer = await asker.stream(order)
        except Refused as error:
            await asyncio.sleep(1.0)
            outcome.num_refused += 1
            outcome.end = "" if time.monotonic() - outcome.began_s < LIMIT_S else f"refused: {error}"
        except Broken as error:
            broke_s = time.monotonic()
            await asyncio.sleep(1.0)  # the kill may be noted a moment later
            outcome.breaks.append(str(error))
            outcome.end = "" if any(_broke(kill, tried_s, broke_s) for kill in kills) else "lost"
        else:
            pauses = [after - before for before, after in pairwise([tried_s, *answer.moments])]
            outcome.longest_pause_s = max(pauses, default=0.0)
            outcome.end = _end(order, answer, right)
    outcome.ended_s = time.monotonic()
    return outcome


def _broke(kill: Kill, tried_s: float, broke_s: float) -> bool:
    """Whether an ingress died while the answer came, or so lately that it was still sent requests."""
    return kill.role == INGRESS and tried_s - NOTED_S <= kill.killed_s <= broke_s + NOTED_S


def _end(order: Order, answer: Answer, right: Answer) -> str:
    if answer.reason is None:
        return "cancelled" if order.cancel_after and answer.begins(right) else "wrong"
    return "right" if answer.is_as(right) else "wrong"


def report(outcomes: Sequence[Outcome], kills: Sequence[Kill]) -> None:
    rows = [row_of(role, [kill for kill in kills if kill.role == role], outcomes) for role in roles(kills)]
    ends = Counter(outcome.end for outcome in outcomes)
    again = sum(len(outcome.breaks) for outcome in outcomes if outcome.end != "lost")
    header = ("killed", "times", "back after, median s", "longest", "requests under way", "longest pause of one, s")
    told = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
    kinds = Counter(f"{one.kind} over {one.protocol}" for one in outcomes)
    mix = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    command = f"DRAFTPOOL_CHAOS_REQUESTS={NUM_REQUESTS} pytest tests/deployments/test_chaos.py"
    place = machine.describe() | {"command": command}
    later = sum(bool(one.num_refused) for one in outcomes)
    notes = (
        f"{len(outcomes)} requests, {UNDER_WAY} at a time: {told}. {again} times one was asked for again because its "
        f"ingress had died; {later} were told to come back before they began (503). Of them {mix}.",
        f"A replica is killed every {PAUSE_S[0]:g} to {PAUSE_S[1]:g} s, none of a deployment that lacks one.",
    )
    table = machine.markdown(header, rows, *notes, "", machine.footer(place))
    print(table)  # noqa: T201
    if OUT:
        told_kills = [asdict(kill) | {"took_s": kill.took_s} for kill in kills]
        report = {"machine": place, "kills": told_kills, "outcomes": [asdict(one) for one in outcomes]}
        machine.save(Path(OUT), report, table)


def roles(kills: Sequence[Kill]) -> list[str]:
    return sorted({kill.role for kill in kills})


def row_of(role: str, kills: Sequence[Kill], outcomes: Sequence[Outcome]) -> tuple[object, ...]:
    times = [kill.took_s for kill in kills if kill.took_s is not None]
    hit = [one for one in outcomes if any(one.began_s <= kill.killed_s <= one.ended_s for kill in kills)]
    pause = max((one.longest_pause_s for one in hit), default=0.0)
    return role, len(kills), f"{median(times):.1f}", f"{max(times):.1f}", len(hit), f"{pause:.1f}"


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
