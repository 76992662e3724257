"""A draft replica in virtual time: the real DraftWorker, fed with encoded messages, one pass after the other.

A pass is computed when it begins, on a clock that runs ahead of the loop's by what the pass takes. What it answers is
sent at the end of it, and messages that come meanwhile wait, as they do at a socket.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from drafters.limits import PoolLimits
from drafters.nested import NestedDrafter
from drafters.worker import DraftWorker
from link.pool_thread import act
from protocol.limits import MessageLimits, limits_of
from protocol.wire import PoolMessage, decode_target
from simulation.costs import PoolCharge
from simulation.loop import Event, Loop

logger = logging.getLogger(__name__)
Reply = Callable[[PoolMessage], None]


class Replica:
    def __init__(self, loop: Loop, name: str, drafter: NestedDrafter, charge: PoolCharge, limits: PoolLimits) -> None:
        """charge: what the drafter's passes are charged to."""
        self.name = name
        self.drafter = drafter
        self.worker = DraftWorker(drafter, limits, self.clock)
        self.limits: MessageLimits = limits_of(limits.max_rows, drafter.max_positions)
        self.open = True
        self.busy_s = 0.0
        self._loop = loop
        self._charge = charge
        self._inbox: deque[Event] = deque()
        self._working = False

    def clock(self) -> float:
        """Within a pass, the time at its end."""
        return self._loop.now + 1e-3 * self._charge.ms

    def receive(self, owner: str, data: bytes, reply: Reply, fail: Event) -> None:
        """owner: of the link. fail: ends that."""
        self._post(lambda: self._read(owner, data, reply, fail))

    def drop(self, owner: str) -> None:
        self._post(lambda: self.worker.drop(owner))

    def _post(self, action: Event) -> None:
        if self.open:
            self._inbox.append(action)
            if not self._working:
                self._working = True
                self._loop.call_in(0.0, self._turn)

    def _turn(self) -> None:
        """What came, and a pass if there is something to do."""
        for _ in range(len(self._inbox)):
            self._inbox.popleft()()
        self._working = self.open and self.worker.step() is not None
        took = 1e-3 * self._charge.take()
        self.busy_s += took
        if self._working:
            self._loop.call_in(took, self._turn)

    def _read(self, owner: str, data: bytes, reply: Reply, fail: Event) -> None:
        try:
            act(self.worker, decode_target(data, owner, self.limits), reply)
        except ValueError as error:
            logger.info("replica %s leaves %s: %s", self.name, owner, error)
            fail()
