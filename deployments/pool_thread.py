"""The thread that owns a DraftWorker: a bounded inbox, and pass after pass while there is work."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from protocol.branch import AheadRequest, ExitHint
from protocol.draft import DraftBlock, DraftReply, DraftRequest, DraftStatus
from protocol.stats import PassStats, PoolStats
from protocol.wire import CloseSequences, PoolMessage, TargetMessage

logger = logging.getLogger(__name__)

MAX_INBOX = 256
EXPIRE_EVERY_S = 1.0
LOG_EVERY_S = 30.0
MAX_PASSES = 4096  # of which a trace can tell

Reply = Callable[[PoolMessage], None]


class Worker(Protocol):
    """What the thread needs of drafters.worker.DraftWorker."""

    def submit(self, request: DraftRequest, reply: Reply) -> None: ...
    def ahead(self, request: AheadRequest, reply: Reply) -> None: ...
    def hint(self, hint: ExitHint) -> None: ...
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
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._beat = time.monotonic()
        self._expired = self._logged = clock()
        self._stats = worker.stats()
        self._passes: deque[tuple[float, PassStats]] = deque(maxlen=MAX_PASSES)
        self._thread = threading.Thread(target=self._loop, name="draft-worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def heartbeat_age_s(self) -> float:
        """Seconds since the loop last turned, an idle loop turns once a second; infinite when it has ended."""
        return time.monotonic() - self._beat if self._thread.is_alive() else float("inf")

    def stats(self) -> PoolStats:
        """As of the last pass."""
        return self._stats

    def passes(self) -> tuple[tuple[float, PassStats], ...]:
        """The last ones, oldest first: when each ended, and its counts."""
        return tuple(self._passes)

    def receive(self, message: TargetMessage, reply: Reply) -> None:
        """`reply` is called on the worker's thread, as rows are answered, or from here when the inbox is full: what
        nobody waits for is dropped then.
        """
        has_room = len(self._inbox) < MAX_INBOX
        match message:
            case CloseSequences():
                self._post(lambda: self._worker.close(message.incarnation, message.sequence_ids))
            case DraftRequest() if has_room:
                self._post(lambda: self._worker.submit(message, reply))
            case DraftRequest():
                reply(busy(message))
            case AheadRequest() if has_room:
                self._post(lambda: self._worker.ahead(message, reply))
            case ExitHint() if has_room:
                self._post(lambda: self._worker.hint(message))

    def drop(self, incarnation: str) -> None:
        self._post(lambda: self._worker.drop(incarnation))

    def _post(self, action: Callable[[], None]) -> None:
        with self._wake:
            self._inbox.append(action)
            self._wake.notify()

    def _loop(self) -> None:
        try:
            idle = True
            while self._take_inbox(wait=idle):
                self._beat = time.monotonic()
                idle = not self._step()
                self._expire()
        except Exception:
            logger.exception("the draft worker failed; this replica reports itself unhealthy")

    def _step(self) -> bool:
        """False when there was nothing to do."""
        done = self._worker.step()
        if done is not None:
            self._passes.append((self._clock(), done))
        self._stats = self._worker.stats()
        return done is not None

    def _take_inbox(self, *, wait: bool) -> bool:
        """Does what arrived, first waiting for something when idle. False when the thread is to stop."""
        with self._wake:
            if wait and not self._inbox and not self._stopping:
                self._wake.wait(timeout=1.0)
            actions, self._inbox = self._inbox, deque()
        for action in actions:
            action()
        return not self._stopping

    def _expire(self) -> None:
        now = self._clock()
        if now - self._expired >= EXPIRE_EVERY_S:
            self._expired = now
            self._worker.expire(now)
        if now - self._logged >= LOG_EVERY_S:
            self._logged = now
            logger.info("%s", self._stats)


def busy(request: DraftRequest) -> DraftReply:
    blocks = tuple(DraftBlock(row.sequence_id, row.base_length, DraftStatus.BUSY) for row in request.rows)
    return DraftReply(request.incarnation, request.round_id, blocks)
