"""Virtual time: one heap of events, and actors that wait in it.

An event is a callback at a moment. It never waits: a draft replica computes a pass when it begins and schedules what
follows at its end. The step of a target blocks in the middle, for a pass or a draft. So each target is an actor on a
thread of its own, and the threads hand one baton over: whoever holds it runs the heap until its own turn comes. One
thread runs at any moment, and events of one moment run as they were scheduled, so a simulation is deterministic.
Generators would need a second step, greenlets a dependency; with a single target no thread is ever switched.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

Event = Callable[[], None]


class Stuck(Exception):
    """An actor waits, and no event is left that could wake it."""


class _Stopped(BaseException):
    """Another actor has failed: unwinds the thread."""


@dataclass(slots=True, eq=False)
class Actor:
    """One thread of a simulation. ticket: of its present wait; what wakes an earlier one is ignored."""

    name: str
    baton: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    ticket: int = 0


class Loop:
    def __init__(self) -> None:
        self.now = 0.0  # seconds
        self._heap: list[tuple[float, int, Event]] = []
        self._count = 0
        self._running: Actor | None = None  # who holds the baton
        self._left = 0  # actors that have not ended
        self._done = threading.Semaphore(0)
        self._failure: BaseException | None = None

    def clock(self) -> float:
        return self.now

    def call_at(self, moment: float, event: Event) -> None:
        """Moments in the past are now."""
        self._count += 1
        heapq.heappush(self._heap, (max(moment, self.now), self._count, event))

    def call_in(self, delay_s: float, event: Event) -> None:
        self.call_at(self.now + delay_s, event)

    @property
    def actor(self) -> Actor:
        """Who runs now."""
        assert self._running is not None, "only an actor can wait; give the code to Loop.run"
        return self._running

    def sleep(self, seconds: float) -> None:
        """Called by an actor: lets the others run for this long."""
        self.wait(self.now + seconds)

    def wait(self, until: float) -> None:
        """Called by an actor: waits until then, or until somebody wakes it."""
        actor = self.actor
        actor.ticket += 1
        ticket = actor.ticket
        if until < float("inf"):
            self.call_at(until, lambda: self._resume(actor, ticket))
        self._run_heap(actor)

    def wake(self, actor: Actor) -> None:
        """Ends its wait at this moment."""
        ticket = actor.ticket
        self.call_at(self.now, lambda: self._resume(actor, ticket))

    def run(self, mains: Iterable[tuple[str, Event]]) -> None:
        """Runs these as actors until all have ended. Raises what the first one to fail raised."""
        actors = [(Actor(name), main) for name, main in mains]
        self._left = len(actors)
        threads = [threading.Thread(target=self._act, args=pair, name=pair[0].name, daemon=True) for pair in actors]
        for thread, (actor, _) in zip(threads, actors, strict=True):
            self.call_at(self.now, lambda actor=actor: self._resume(actor, 0))  # type: ignore[misc]
            thread.start()
        with suppress(_Stopped):
            self._pass_on()
        self._done.acquire()
        failure, self._failure = self._failure, _Stopped()
        for actor, _ in actors:
            actor.baton.release()
        for thread in threads:
            thread.join()
        self._failure = None
        if failure is not None:
            raise failure

    def run_until(self, moment: float) -> None:
        """Without actors: all events up to then."""
        while self._heap and self._heap[0][0] <= moment:
            self._step()
        self.now = max(self.now, moment)

    def _act(self, actor: Actor, main: Event) -> None:
        actor.baton.acquire()
        try:
            if self._failure is None:
                main()
                self._left -= 1
                self._pass_on()
        except _Stopped:
            pass
        except BaseException as error:
            self._failure = self._failure or error
            self._done.release()

    def _pass_on(self) -> None:
        """Gives the baton away for good."""
        if self._left:
            self._run_heap(None)
        else:
            self._done.release()

    def _run_heap(self, own: Actor | None) -> None:
        """Runs events until one makes an actor ready, and hands it the baton. own: who waits for it here.

        What an event raises ends the simulation, and is not for the code that happens to wait here to catch.
        """
        try:
            ready = self._next_ready()
        except BaseException as error:
            self._failure = self._failure or error
            self._done.release()
            raise _Stopped from None
        if ready is own:
            return
        ready.baton.release()
        if own is not None:
            own.baton.acquire()
            if self._failure is not None:
                raise _Stopped

    def _next_ready(self) -> Actor:
        self._running = None
        while self._running is None:
            if not self._heap:
                raise Stuck(f"at {self.now:.6f} s {self._left} actors wait, and nothing will happen any more")
            self._step()
        return self._running

    def _step(self) -> None:
        moment, _, event = heapq.heappop(self._heap)
        self.now = moment
        event()

    def _resume(self, actor: Actor, ticket: int) -> None:
        if actor.ticket == ticket:
            actor.ticket += 1
            self._running = actor
