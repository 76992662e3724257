"""When a client calls again, under a clock that only its own pauses move."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest

from draftpool import Client, InvalidRequest, NotReady, QueueFull, Retries, TimedOut
from protocol.request import GenerateRequest
from tests.api.api_twins import ScriptedBackend, runs_of
from tests.client.conftest import Connect, Serve

RETRIES = Retries(most=3, first_s=1.0, longest_s=8.0)


@dataclass
class Time:
    """A clock whose only hand is sleep. draw: the random number behind every pause."""

    now: float = 100.0
    draw: float = 0.5
    pauses: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def options(self, retries: Retries = RETRIES) -> dict[str, Any]:
        return {"retries": retries, "clock": lambda: self.now, "sleep": self.sleep, "jitter": lambda: self.draw}


class Reluctant(ScriptedBackend):
    """Refuses the first calls with these errors, then answers."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__(self._answer)
        self._errors = list(errors)

    def _answer(self, request: GenerateRequest) -> Any:
        return [self._errors.pop(0)] if self._errors else runs_of(request, [70], [71])


def ask(client: Any, how: str, **options: Any) -> tuple[int, ...]:
    if how == "whole":
        made: tuple[int, ...] = client.complete("tiny", "a", **options).token_ids
        return made
    return tuple(token for delta in client.stream("tiny", "a", **options) for token in delta.token_ids)


@pytest.fixture(params=["whole", "stream"])
def how(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("draw", [0.0, 0.5])
def test_a_full_or_loading_server_is_asked_again_after_what_it_says_and_a_random_part(
    serve: Serve, connect: Connect, how: str, draw: float
) -> None:
    time, backend = Time(draw=draw), Reluctant(QueueFull("full"), NotReady("loading"), QueueFull("full"))
    with serve(backend) as servers:
        assert ask(connect(servers, **time.options()), how) == (70, 71)
    assert time.pauses == [1 + draw * 1, 1 + draw * 2, 1 + draw * 4]  # Retry-After is 1
    assert len(backend.requests) == 4


def test_a_full_server_says_when_there_may_be_room(serve: Serve, connect: Connect, how: str) -> None:
    time, backend = Time(draw=0.0), Reluctant(QueueFull("full", 2.3), QueueFull("full", 0.1), QueueFull("full", None))
    with serve(backend) as servers:
        ask(connect(servers, **time.options()), how)
    assert time.pauses == [3, 1, 1]


def test_pauses_grow_up_to_the_longest(serve: Serve, connect: Connect, how: str) -> None:
    time, backend = Time(draw=1.0), Reluctant(*[QueueFull("full")] * 6)
    with serve(backend) as servers:
        ask(connect(servers, **time.options(replace(RETRIES, most=6))), how)
    assert time.pauses == [1 + part for part in (1, 2, 4, 8, 8, 8)]


def test_when_the_attempts_are_used_up_the_servers_error_is_raised(serve: Serve, connect: Connect, how: str) -> None:
    time, backend = Time(), Reluctant(*[QueueFull("full")] * 9)
    with serve(backend) as servers, pytest.raises(QueueFull, match="full"):
        ask(connect(servers, **time.options()), how)
    assert (len(time.pauses), len(backend.requests)) == (3, 4)


@pytest.mark.parametrize("error", [InvalidRequest("no", "top_k"), RuntimeError("secret"), TimedOut("late")], ids=repr)
def test_another_error_is_no_reason_to_ask_again(serve: Serve, connect: Connect, how: str, error: Exception) -> None:
    time, backend = Time(), Reluctant(error)
    with serve(backend) as servers, pytest.raises(Exception):  # noqa: B017, PT011  # of any class; the contract has which
        ask(connect(servers, **time.options()), how)
    assert (time.pauses, len(backend.requests)) == ([], 1)


def test_a_pause_that_outlasts_the_time_limit_is_not_made(serve: Serve, connect: Connect, how: str) -> None:
    time, backend = Time(draw=1.0), Reluctant(*[QueueFull("full")] * 9)
    with serve(backend) as servers, pytest.raises(QueueFull):
        ask(connect(servers, **time.options()), how, timeout_s=5.5)
    assert time.pauses == [2.0, 3.0]  # the third would be 5


def test_a_call_has_the_time_that_its_pauses_leave(serve: Serve, connect: Connect, how: str) -> None:
    time, backend = Time(), Reluctant(QueueFull("full"))
    with serve(backend) as servers:
        client = connect(servers, **time.options() | {"sleep": lambda seconds: setattr(time, "now", time.now + 60)})
        with pytest.raises(TimedOut, match="30 s"):
            ask(client, how, timeout_s=30.0)
    assert len(backend.requests) == 1


def test_a_server_that_asks_for_too_long_a_pause_is_not_asked_again() -> None:
    time, calls = Time(), list[httpx.Request]()

    def answer(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        return httpx.Response(503, text="upstream is away", headers={"retry-after": "9"})

    with Client("http://test", **time.options()) as client:
        transport: Any = client._transport
        transport._http = httpx.Client(base_url="http://test", transport=httpx.MockTransport(answer))
        with pytest.raises(NotReady, match="503"):
            client.models()
    assert (time.pauses, len(calls)) == ([], 1)
