"""A target's way to the pool over gRPC: one persistent stream to one draft replica at a time.

Two threads meet here. The engine thread asks, at once or a pass later waits, never beyond its deadline. The event loop
keeps the stream: it looks for draft replicas every few seconds and whenever a stream ends, connects to the best, fills
in the round that was asked for last, and gathers branches, which nobody waits for. A move is one assignment of
`_link`; a round keeps the link it began with, so moves fall between rounds. What a new replica does not know it
answers with NEED_CONTEXT.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from deployments.backoff import Ask, Backoff
from deployments.discovery import Discover, Need, PoolMember, choose
from deployments.link import Link
from protocol.branch import AheadRequest, Branch, BranchReply, ExitHint
from protocol.draft import DraftBlock, DraftReply, DraftRequest
from protocol.wire import CloseSequences, PoolMessage

logger = logging.getLogger(__name__)

MAX_BRANCHES = 1024


@dataclass(frozen=True, slots=True)
class TransportConfig:
    """lost_every_s: how often to look for a replica while there is none. avoid_s: how long to leave a failed one."""

    deadline_s: float = 0.05
    discover_every_s: float = 3.0
    lost_every_s: float = 0.25
    avoid_s: float = 5.0


class Round:
    """Blocks of one request as they arrive: the loop adds, the engine thread waits. expires: when an answer is late."""

    def __init__(self, request: DraftRequest, link: Link, expires: float) -> None:
        self.link = link
        self.expires = expires
        self._request = request
        self._missing = {row.sequence_id: row.base_length for row in request.rows}
        self._blocks: dict[int, DraftBlock] = {}
        self._wait_ms = 0.0
        self._over = threading.Event()
        self._lock = threading.Lock()

    def add(self, reply: DraftReply) -> bool:
        """Takes what belongs to this round, the rest came late and is dropped; True when nothing is missing now."""
        if (reply.incarnation, reply.round_id) != (self._request.incarnation, self._request.round_id):
            return False
        with self._lock:
            for block in reply.blocks:
                if self._missing.get(block.sequence_id) == block.base_length:
                    del self._missing[block.sequence_id]
                    self._blocks[block.sequence_id] = block
            self._wait_ms = reply.wait_ms
            if self._missing:
                return False
        self._over.set()
        return True

    def end(self) -> None:
        """The stream is gone: what is missing will not come."""
        self._over.set()

    def wait(self, clock: Callable[[], float]) -> None:
        self._over.wait(max(0.0, self.expires - clock()))

    @property
    def num_drafted(self) -> int:
        """Rows that came with tokens. Refusals come at once, and say nothing of how fast the pool drafts."""
        with self._lock:
            return sum(bool(block.tokens) for block in self._blocks.values())

    @property
    def mostly_late(self) -> bool:
        return len(self._missing) > self.num_drafted

    def reply(self) -> DraftReply | None:
        """What has come, in the order of the rows."""
        with self._lock:
            rows = self._request.rows
            blocks = tuple(self._blocks[row.sequence_id] for row in rows if row.sequence_id in self._blocks)
            wait_ms = self._wait_ms
        return DraftReply(self._request.incarnation, self._request.round_id, blocks, wait_ms) if blocks else None


class Inbox:
    """Branches as they arrive: the loop puts, the engine thread takes. Only the newest are kept."""

    def __init__(self) -> None:
        self._branches: deque[Branch] = deque(maxlen=MAX_BRANCHES)
        self._arrived = threading.Condition()

    def put(self, branches: Sequence[Branch]) -> None:
        with self._arrived:
            self._branches.extend(branches)
            self._arrived.notify()

    def take(self, timeout_s: float) -> list[Branch]:
        with self._arrived:
            if timeout_s > 0:
                self._arrived.wait_for(lambda: self._branches, timeout_s)
            taken = list(self._branches)
            self._branches.clear()
        return taken


class GrpcDraftClient:
    """A protocol.branch.MirrorClient. `start` and `stop` run on the event loop, everything else on any thread."""

    def __init__(
        self,
        incarnation: str,
        discover: Discover,
        need: Need,
        config: TransportConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_link: Callable[[PoolMember], None] | None = None,
    ) -> None:
        """on_link: called on the event loop when drafts will come from another replica than so far."""
        self._incarnation = incarnation
        self._discover = discover
        self._need = need
        self._config = config or TransportConfig()
        self._clock = clock
        self._on_link = on_link
        self._backoff = Backoff(clock)
        self._link: Link | None = None
        self._round: Round | None = None
        self._asked: Round | None = None  # and not yet waited for
        self._branches = Inbox()
        self._avoid: dict[str, float] = {}
        self._lost = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def replica(self) -> str | None:
        """The incarnation of the draft replica in use."""
        member = self.member
        return member.incarnation if member else None

    @property
    def member(self) -> PoolMember | None:
        """What the draft replica in use told of itself when it was chosen."""
        link = self._link
        return link.member if link else None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._keep_connected())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        link, self._link = self._link, None
        if link is not None:
            await link.close()
        await asyncio.gather(*self._closing, return_exceptions=True)

    def open(self, request: DraftRequest) -> None:
        link = self._link
        if link is not None:
            link.send(request)

    def draft(self, request: DraftRequest) -> DraftReply | None:
        self.ask(request)
        return self.answer()

    def ask(self, request: DraftRequest) -> None:
        self._asked = None
        link = self._link
        if link is None or not link.open or (ask := self._backoff.ask()) is Ask.SKIP:
            return
        waits = ask is Ask.WAIT
        current = Round(request, link, math.inf if waits else self._clock() + self._config.deadline_s)
        self._round = current
        self._asked = current if waits else None
        link.send(request)

    def answer(self) -> DraftReply | None:
        current, self._asked = self._asked, None
        if current is None:
            return None
        current.expires = self._clock() + self._config.deadline_s
        if current.link.open:  # it may have ended before the round was there to be told
            current.wait(self._clock)
        if current.link.open and current.mostly_late:
            self._backoff.missed()
        return current.reply()

    def ahead(self, request: AheadRequest) -> None:
        """Not to a replica that was too slow lately: whether it still is, drafts find out."""
        link = self._link
        if link is not None and not self._backoff.resting:
            link.send(request)

    def hint(self, hint: ExitHint) -> None:
        link = self._link
        if link is not None and not self._backoff.resting:
            link.send(hint)

    def branches(self, timeout_s: float = 0.0) -> Sequence[Branch]:
        link = self._link
        return self._branches.take(0.0 if link is None or self._backoff.resting else timeout_s)

    def close(self, sequence_ids: Sequence[int]) -> None:
        link = self._link
        if link is not None:
            link.send(CloseSequences(self._incarnation, tuple(sequence_ids)))

    def _on_message(self, link: Link, message: PoolMessage) -> None:
        match message:
            case DraftReply():
                self._on_reply(link, message)
            case BranchReply() if link is self._link and message.incarnation == self._incarnation:
                self._branches.put(message.branches)

    def _on_reply(self, link: Link, reply: DraftReply) -> None:
        current = self._round
        if current is None or current.link is not link:
            return
        in_time = self._clock() <= current.expires
        if current.add(reply) and in_time and current.num_drafted:
            self._backoff.answered()

    def _on_end(self, link: Link) -> None:
        current = self._round
        if current is not None and current.link is link:
            current.end()
        if self._link is link:
            self._link = None
            self._leave_alone(link.member)
            self._lost.set()

    async def _keep_connected(self) -> None:
        while True:
            self._lost.clear()
            try:
                await self._connect_best()
            except Exception:
                logger.exception("looking for a draft replica failed; it is tried again")
            pause = self._config.discover_every_s if self._link else self._config.lost_every_s
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._lost.wait()

    async def _connect_best(self) -> None:
        member = choose(await self._candidates(), self.replica, self._incarnation)
        if member is None or member.incarnation == self.replica:
            return
        self._leave_alone(member)  # unless this goes well, whatever may go wrong
        link = Link(member, self._on_message, self._on_end)
        if not await link.connect():
            return
        del self._avoid[member.incarnation]
        logger.info("drafting on %s at %s", member.incarnation, member.address)
        self._backoff = Backoff(self._clock)
        old, self._link = self._link, link
        if old is not None:
            self._retire(old)
        if self._on_link is not None:
            self._on_link(member)

    def _leave_alone(self, member: PoolMember) -> None:
        self._avoid[member.incarnation] = self._clock() + self._config.avoid_s

    async def _candidates(self) -> list[PoolMember]:
        try:
            members = await self._discover()
        except Exception:
            logger.exception("discovery of draft replicas failed")
            return []
        now = self._clock()
        self._avoid = {incarnation: until for incarnation, until in self._avoid.items() if until > now}
        fitting = [member for member in members if self._need.met_by(member)]
        if members and not fitting:
            logger.warning("none of %d draft replicas has the vocabulary and the exits of this target", len(members))
        return [member for member in fitting if member.incarnation not in self._avoid]

    def _retire(self, link: Link) -> None:
        """Close a link after a round that may still be on its way there."""

        async def close_later() -> None:
            await asyncio.sleep(self._config.deadline_s)
            await link.close()

        task = asyncio.create_task(close_later())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
