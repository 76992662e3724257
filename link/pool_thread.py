"""The thread that owns a DraftWorker: it reads the sockets of targets, and runs pass after pass.

Between two passes it reads the sockets; with nothing to draft it sleeps until one has something. So a target's message
goes straight to the pass that answers it. What is not read yet waits in the kernel's buffer, then in the sender's
backlog.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from protocol.branch import AheadRequest
from protocol.draft import DraftRequest
from protocol.stats import PassStats, PoolStats
from protocol.wire import CloseSequences, PoolMessage, TargetMessage

logger = logging.getLogger(__name__)

TIDY_EVERY_S = 1.0
TURN_LIMIT_S = 30.0  # that the loop may take beside its passes before it counts as stuck
PASS_LIMIT_S = 600.0  # the same of a pass: a long context through a large drafter, in plain torch on few cores
LOG_EVERY_S = 30.0
MAX_PASSES = 4096  # of which a trace can tell

Reply = Callable[[PoolMessage], None]


class Watched(Protocol):
    """A socket, or an object that has one."""

    def fileno(self) -> int: ...
    def close(self) -> None: ...


class Worker(Protocol):
    """What the thread needs of drafters.worker.DraftWorker."""

    def submit(self, request: DraftRequest, reply: Reply) -> None: ...
    def ahead(self, request: AheadRequest, reply: Reply) -> None: ...
    def close(self, incarnation: str, sequence_ids: tuple[int, ...]) -> None: ...
    def drop(self, incarnation: str) -> None: ...
    def expire(self, now: float) -> None: ...
    def step(self) -> PassStats | None: ...
    def stats(self) -> PoolStats: ...


class PoolThread:
    def __init__(self, worker: Worker, clock: Callable[[], float]) -> None:
        """clock: the worker's own."""
        self._worker = worker
        self._clock = clock
        self._actions: deque[Callable[[], None]] = deque()  # of other threads
        self._selector = selectors.DefaultSelector()
        self._woken, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        self._stopping = False
        self._beat = time.monotonic()
        self._in_pass = False
        self._sweeps: list[Callable[[float], None]] = []
        self._tidied = self._logged = clock()
        self._stats = worker.stats()
        self._passes: deque[tuple[float, PassStats]] = deque(maxlen=MAX_PASSES)
        self._thread = threading.Thread(target=self._loop, name="draft-worker", daemon=True)

    def start(self) -> None:
        self._selector.register(self._woken, selectors.EVENT_READ, lambda: self._woken.recv(4096))
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._wake_up()
        if self._thread.is_alive():
            self._thread.join()

    def watch(self, watched: Watched, on_ready: Callable[[], object], *, writable: bool = False) -> None:
        """on_ready: called on this thread whenever there is something to read and, with `writable`, whenever there is
        room to write. A second call changes either. Closed when the thread ends.
        """
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if writable else 0)
        self._do(lambda: self._register(watched, events, on_ready))

    def unwatch(self, watched: Watched) -> None:
        """Stops watching it, and closes it."""
        self._do(lambda: self._release(watched))

    def sweep(self, action: Callable[[float], None]) -> None:
        """Has `action` called with the time, on this thread, about once a second, after what came was read."""
        self._sweeps.append(action)

    def now(self) -> float:
        return self._clock()

    def stuck_for_s(self) -> float:
        """Seconds by which the loop is late, 0 while it may well be at work; infinite when it has ended."""
        limit = PASS_LIMIT_S if self._in_pass else TURN_LIMIT_S
        age = self.heartbeat_age_s()
        return age if age > limit else 0.0

    def heartbeat_age_s(self) -> float:
        """Seconds since the loop last turned; infinite when it has ended. An idle loop turns once a second."""
        return time.monotonic() - self._beat if self._thread.is_alive() else float("inf")

    def stats(self) -> PoolStats:
        """The worker's counts as of the last pass."""
        return self._stats

    def passes(self) -> tuple[tuple[float, PassStats], ...]:
        """The last passes, oldest first: when each ended, and its counts."""
        return tuple(self._passes)

    def receive(self, message: TargetMessage, reply: Reply) -> None:
        """Takes a target's message, on this thread. `reply` is called on it too, at once or after a pass."""
        act(self._worker, message, reply)

    def drop(self, incarnation: str) -> None:
        self._do(lambda: self._worker.drop(incarnation))

    def _do(self, action: Callable[[], None]) -> None:
        """Does it at once if this is the thread, else has the thread do it soon."""
        if threading.current_thread() is self._thread:
            action()
        else:
            self._actions.append(action)
            self._wake_up()

    def _wake_up(self) -> None:
        with suppress(OSError):  # full: it will wake anyway; closed: it has ended
            self._wake.send(b"!")

    def _register(self, watched: Watched, events: int, on_ready: Callable[[], object]) -> None:
        if watched.fileno() < 0:
            return  # closed since
        if watched.fileno() in self._selector.get_map():
            self._selector.modify(watched, events, on_ready)
        else:
            self._selector.register(watched, events, on_ready)

    def _release(self, watched: Watched) -> None:
        with suppress(KeyError, ValueError):  # closed, or never watched
            self._selector.unregister(watched)
        watched.close()

    def _loop(self) -> None:
        try:
            idle = True
            while self._read(wait=idle):
                self._beat = time.monotonic()
                idle = not self._step()
                self._tidy()
        except Exception:
            logger.exception("the draft worker failed; this replica reports itself unhealthy")
        finally:
            for key in list(self._selector.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr]  # all of them are Watched
            self._selector.close()
            self._wake.close()

    def _step(self) -> bool:
        """Runs a pass. Returns False if there was nothing to do."""
        self._in_pass = True
        done = self._worker.step()
        self._in_pass = False
        if done is not None:
            self._passes.append((self._clock(), done))
        self._stats = self._worker.stats()
        return done is not None

    def _read(self, *, wait: bool) -> bool:
        """Handles what arrived; when idle, waits for something first. Returns False when the thread is to stop."""
        idle = wait and not self._actions and not self._stopping
        for key, _ in self._selector.select(1.0 if idle else 0.0):
            key.data()
        while self._actions:
            self._actions.popleft()()
        return not self._stopping

    def _tidy(self) -> None:
        now = self._clock()
        if now - self._tidied >= TIDY_EVERY_S:
            self._tidied = now
            for sweep in (*self._sweeps, self._worker.expire):
                sweep(now)
        if now - self._logged >= LOG_EVERY_S:
            self._logged = now
            logger.info("%s", self._stats)


def act(worker: Worker, message: TargetMessage, reply: Reply) -> None:
    """What a target's message asks of the worker."""
    match message:
        case DraftRequest():
            worker.submit(message, reply)
        case AheadRequest():
            worker.ahead(message, reply)
        case CloseSequences():
            worker.close(message.incarnation, message.sequence_ids)
