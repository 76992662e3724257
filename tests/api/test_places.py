"""A flood for one model: beyond its places it is refused at the door, and the other models do not notice it."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import grpc
import pytest

from api.places import NUM_KEPT, Places, free_in_s
from protocol.errors import QueueFull
from protocol.pb import inference_pb2 as pb
from protocol.request import GenerateRequest
from tests.api.api_client import Client, call, error_of, events
from tests.api.api_twins import ScriptedBackend, Twin, card, runs_of
from tests.deployments.harness import Clock

MOST = 3


class Flooded:
    """Two models; requests for the first hang until they are let go."""

    def __init__(self, most: int | None = MOST) -> None:
        self.go = asyncio.Event()
        cards = [replace(card(name), places=Places(most)) for name in ("busy", "calm")]
        self.backend = ScriptedBackend(self.script, cards)
        self.client = Client(self.backend)
        self.places = {one.id: one.places for one in cards}

    def script(self, request: GenerateRequest) -> list[Any]:
        waits = [self.go] if request.prompt_ids[0] == 7 else []
        return [*waits, *runs_of(request, [80], [81])]

    async def hanging(self, count: int, **fields: Any) -> list[asyncio.Task[Any]]:
        """So many calls that are being answered."""
        before = self.backend.num_open
        made = [asyncio.create_task(self.client.complete(model="busy", prompt=[7], **fields)) for _ in range(count)]
        async with asyncio.timeout(10):
            while self.backend.num_open < before + count:
                await asyncio.sleep(0.001)
        return made


@pytest.fixture
async def flooded() -> AsyncIterator[Flooded]:
    made = Flooded()
    yield made
    made.go.set()
    await made.client.aclose()
    assert [places.num_taken for places in made.places.values()] == [0, 0], "places that nobody gave back"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_model_refuses_and_the_other_one_answers(flooded: Flooded, stream: bool) -> None:
    hanging = await flooded.hanging(MOST, stream=stream)
    refused = await flooded.client.complete(model="busy", prompt=[7], stream=stream)
    assert error_of(refused, 429)["code"] == "rate_limit_exceeded"
    assert refused.headers["retry-after"] == "1"
    assert len(flooded.backend.requests) == MOST, "nothing was asked of the target"
    answered = await flooded.client.complete(model="calm", prompt=[9], stream=True)
    assert [event["choices"][0]["text"] for event in events(answered)]
    flooded.go.set()
    assert {response.status_code for response in await asyncio.gather(*hanging)} == {200}
    assert (await flooded.client.complete(model="busy", prompt=[9])).status_code == 200


async def test_over_grpc_too(flooded: Flooded) -> None:
    hanging = await flooded.hanging(MOST)
    one, other = (pb.GenerateRequest(model=name, token_ids=pb.TokenIds(ids=[9])) for name in ("busy", "calm"))
    refused, answered = await call(flooded.backend, one), await call(flooded.backend, other)
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.details.endswith("; try again in 1 s")
    assert answered.code is grpc.StatusCode.OK
    flooded.go.set()
    await asyncio.gather(*hanging)


async def test_a_flood_of_hundreds_is_refused_and_takes_no_place_of_another_model(flooded: Flooded) -> None:
    hanging = await flooded.hanging(MOST)
    flood = [flooded.client.complete(model="busy", prompt="grüße") for _ in range(300)]
    calm = [flooded.client.complete(model="calm", prompt="grüße") for _ in range(MOST)]
    answers = await asyncio.gather(*flood, *calm)
    assert [answer.status_code for answer in answers] == [429] * 300 + [200] * MOST
    flooded.go.set()
    await asyncio.gather(*hanging)


async def test_a_client_that_leaves_gives_its_place_back(flooded: Flooded) -> None:
    for hanging in await flooded.hanging(MOST):
        hanging.cancel()
        await asyncio.gather(hanging, return_exceptions=True)
    assert flooded.places["busy"].num_taken == 0
    assert (await flooded.client.complete(model="busy", prompt=[9])).status_code == 200


async def test_a_call_of_many_choices_takes_a_place_for_each_that_is_made(flooded: Flooded) -> None:
    hanging = asyncio.create_task(flooded.client.complete(model="busy", prompt=[7], n=MOST))
    async with asyncio.timeout(10):
        while flooded.places["busy"].num_taken < MOST:
            await asyncio.sleep(0.001)
    assert (await flooded.client.complete(model="busy", prompt=[9])).status_code == 429
    flooded.go.set()
    assert (await hanging).status_code == 200


def test_a_place_is_given_back_when_its_call_fails() -> None:
    places = Places(1)

    def fail() -> None:
        with places.entered():
            raise ValueError

    for _ in range(3):
        with pytest.raises(ValueError):  # noqa: PT011
            fail()
    with places.taken(), pytest.raises(QueueFull, match="1 requests for this model"):
        fail()


async def test_a_model_whose_texts_keep_its_threads_busy_does_not_delay_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each has threads of its own, as deployments/backend.py gives them."""
    held, slow = threading.Event(), card("busy").tokenizer

    def hang() -> None:
        assert held.wait(20)

    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        busy, calm = (replace(card(name), threads=threads) for name, threads in (("busy", one), ("calm", other)))
        waiting = [asyncio.create_task(busy.beside(hang)) for _ in range(5)]
        await asyncio.sleep(0)
        began = time.monotonic()
        assert await calm.beside(lambda: slow.encode("grüße"))
        assert time.monotonic() - began < 15
        assert not any(task.done() for task in waiting)
        held.set()
        await asyncio.gather(*waiting)


@pytest.mark.parametrize(
    ("took_s", "num_taken", "free_s"),
    [((), 4, None), ((8.0,), 0, None), ((8.0,), 4, 2.0), ((2.0, 4.0, 0.0), 1, 2.0), ((300.0,) * 3, 60, 5.0)],
)
def test_a_place_is_free_after_what_one_takes_over_how_many_there_are(
    took_s: tuple[float, ...], num_taken: int, free_s: float | None
) -> None:
    assert free_in_s(took_s, num_taken) == free_s


def test_a_full_model_tells_by_the_last_choices_when_a_place_is_free_and_an_idle_night_changes_nothing() -> None:
    """Preparing a call takes a place too, but says nothing of how long answers take."""
    clock = Clock()
    places = Places(2, clock)
    for took_s in [1000.0] * NUM_KEPT + [12.0] * NUM_KEPT:
        with places.entered(), places.taken():
            clock.now += took_s
    clock.now += 40_000.0
    with places.entered():
        clock.now += 0.1
    with places.taken(), places.taken(), pytest.raises(QueueFull) as refused, places.entered():
        pass
    assert refused.value.retry_after_s == pytest.approx(12.0 / 2)


def test_places_are_free_as_soon_as_was_told_where_answers_end_by_chance() -> None:
    """A model that is always full, in virtual time: 2,000 are refused, and wait in the mean for what they were told."""
    rng, clock = random.Random(3), Clock()
    places = Places(40, clock)
    held: dict[float, ExitStack] = {}  # by when it ends
    told_s, waited_s = 0.0, 0.0
    for _ in range(2000):
        while places.num_taken < 40:
            stack = held[clock.now + rng.expovariate(1 / 30)] = ExitStack()
            stack.enter_context(places.taken())
        with pytest.raises(QueueFull) as refused, places.entered():
            pass
        asked_s, clock.now = clock.now, min(held)
        held.pop(clock.now).close()
        if (free_s := refused.value.retry_after_s) is not None:
            told_s, waited_s = told_s + free_s, waited_s + clock.now - asked_s
    assert told_s == pytest.approx(waited_s, rel=0.1)


@pytest.mark.parametrize("priority", [-1000, 0, 7.0, 1000])
async def test_a_priority_reaches_the_target(priority: float) -> None:
    backend: Twin = ScriptedBackend(lambda request: runs_of(request, [80]))
    assert isinstance(backend, ScriptedBackend)
    async with Client(backend) as client:
        assert (await client.complete(priority=priority)).status_code == 200
        assert (await client.chat(priority=priority)).status_code == 200
    message = pb.GenerateRequest(model="tiny", text="import", priority=int(priority))
    assert (await call(backend, message)).code is grpc.StatusCode.OK
    assert [request.priority for request in backend.requests] == [priority] * 3


@pytest.mark.parametrize("priority", [-1001, 1001, 0.5, "high"])
async def test_a_priority_out_of_range_is_refused_by_name(priority: Any) -> None:
    async with Client(ScriptedBackend(lambda request: runs_of(request, [80]))) as client:
        assert error_of(await client.complete(priority=priority), 400)["param"] == "priority"
