"""Virtual time: order, waiting, and what becomes of mistakes."""

from __future__ import annotations

import heapq
import random
from functools import partial

import pytest

from simulation.loop import Loop, Stuck


def test_events_run_in_the_order_of_their_moments_and_those_of_one_moment_as_they_came() -> None:
    rng = random.Random(1)
    loop, found = Loop(), list[tuple[float, int]]()
    planned = [(rng.randrange(5), number) for number in range(100)]
    for moment, number in planned:
        loop.call_at(float(moment), partial(lambda number: found.append((loop.now, number)), number))
    loop.run_until(10.0)
    assert found == sorted((float(moment), number) for moment, number in planned)
    assert loop.now == 10.0


def sleepers(seed: int) -> list[tuple[float, str]]:
    """Actors that sleep for times drawn by seed; when each woke up."""
    loop, found = Loop(), []

    def main(name: str) -> None:
        rng = random.Random(f"{seed} {name}")
        for _ in range(20):
            loop.sleep(rng.choice((0.0, 0.25, 0.5)))
            found.append((loop.now, name))

    loop.run((name, partial(main, name)) for name in "abc")
    return found


def slept(seed: int) -> list[tuple[float, str]]:
    """The same without threads: a heap of who wakes up next."""
    rngs = {name: random.Random(f"{seed} {name}") for name in "abc"}
    left, found, count = dict.fromkeys("abc", 20), [], 3
    heap = [(0.0, number, name) for number, name in enumerate("abc")]
    started: set[str] = set()
    while heap:
        now, _, name = heapq.heappop(heap)
        if name in started:
            found.append((now, name))
        started.add(name)
        if left[name]:
            left[name] -= 1
            count += 1
            heapq.heappush(heap, (now + rngs[name].choice((0.0, 0.25, 0.5)), count, name))
    return found


def test_actors_wake_when_and_in_the_order_in_which_a_loop_without_threads_says() -> None:
    for seed in range(20):
        assert sleepers(seed) == slept(seed)


def test_an_actor_waits_until_it_is_woken_or_its_time_is_up() -> None:
    loop, found = Loop(), list[float]()

    def main() -> None:
        actor = loop.actor
        loop.call_at(1.0, lambda: loop.wake(actor))
        loop.wait(5.0)
        found.append(loop.now)
        loop.wait(5.0)
        found.append(loop.now)
        loop.call_at(5.5, lambda: loop.wake(actor))
        loop.call_at(5.5, lambda: loop.wake(actor))
        loop.wait(float("inf"))
        loop.sleep(1.0)
        found.append(loop.now)

    loop.run([("main", main)])
    assert found == [1.0, 5.0, 6.5]


def test_what_an_actor_or_an_event_raises_ends_all_and_is_raised() -> None:
    for by_event in (False, True):
        loop, after = Loop(), list[float]()

        def fail() -> None:
            raise KeyError("mine")

        def main(loop: Loop = loop, by_event: bool = by_event) -> None:
            if by_event:
                loop.call_in(1.0, fail)
            else:
                loop.sleep(1.0)
                fail()
            loop.sleep(9.0)

        def other(loop: Loop = loop, after: list[float] = after) -> None:
            try:
                loop.sleep(2.0)
            except Exception:
                after.append(loop.now)
            after.append(loop.now)

        with pytest.raises(KeyError, match="mine"):
            loop.run([("main", main), ("other", other)])
        assert not after, "code that happens to wait neither catches it nor goes on"


def test_waiting_for_what_will_never_happen_is_told() -> None:
    loop = Loop()
    with pytest.raises(Stuck, match="1 actors wait"):
        loop.run([("main", lambda: loop.wait(float("inf")))])
