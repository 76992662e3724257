"""A target's way to the pool: one persistent link to one draft replica at a time.

The engine thread asks, and reads the link itself while it waits, at once or a pass later, never beyond its deadline;
branches it reads in passing. The event loop keeps the link: it looks for draft replicas every few seconds and whenever
a link ends, and connects to the best. A move is one assignment of `_link`; a round keeps the link it began with, so
moves fall between rounds. What a new replica does not know it answers with NEED_CONTEXT.
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
from dataclasses import dataclass, replace

from link.backoff import Ask, Backoff
from link.connection import Traffic
from link.discovery import Discover, Need, PoolMember, choose
from link.link import Link, connect
from link.link_round import Round, check_exits, fitting
from protocol.branch import AheadRequest, Branch, BranchReply, ExitHint
from protocol.draft import DraftReply, DraftRequest
from protocol.wire import CloseSequences, PoolMessage

logger = logging.getLogger(__name__)

MAX_BRANCHES = 1024


@dataclass(frozen=True, slots=True)
class TransportConfig:
    """lost_every_s: how often to look for a replica while there is none, and whether the one in use is there still.
    avoid_s: how long to leave a failed one.
    """

    deadline_s: float = 0.05
    discover_every_s: float = 3.0
    lost_every_s: float = 0.25
    avoid_s: float = 5.0


class LinkedDraftClient:
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
        """clock: of deadlines and pauses. on_link: called on the event loop when drafts will come from another replica
        than so far.
        """
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
        self._branches: deque[Branch] = deque(maxlen=MAX_BRANCHES)
        self._switching = threading.Lock()
        self._past = Traffic()  # of links that have ended
        self._loop: asyncio.AbstractEventLoop | None = None
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

    @property
    def traffic(self) -> Traffic:
        """With all draft replicas so far."""
        with self._switching:
            link = self._link
            return self._past + link.traffic if link else self._past

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._keep_connected())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        link, self._link = self._link, None
        if link is not None:
            await asyncio.to_thread(link.close)
        await asyncio.gather(*self._closing, return_exceptions=True)

    def open(self, request: DraftRequest) -> None:
        link = self._link
        if link is not None:
            link.read()
            link.send(fitting(request, link.member.max_positions))

    def draft(self, request: DraftRequest) -> DraftReply | None:
        self.ask(request)
        return self.answer()

    def ask(self, request: DraftRequest) -> None:
        self._asked = None
        link = self._link
        if link is None or (ask := self._backoff.ask()) is Ask.SKIP:
            return
        link.read()  # what is late is out of the way then, and an end is known
        waits = ask is Ask.WAIT
        current = Round(request, link, math.inf if waits else self._clock() + self._config.deadline_s)
        self._round = current
        link.send(current.asked)
        if waits:
            self._asked = current
        else:  # nobody reads what the engine does not wait for
            threading.Thread(target=current.wait, args=(self._clock,), name="draft-probe", daemon=True).start()

    def answer(self) -> DraftReply | None:
        current, self._asked = self._asked, None
        if current is None:
            return None
        current.expires = self._clock() + self._config.deadline_s
        current.wait(self._clock)
        if current.link.open and current.mostly_late:
            self._backoff.missed()
        return current.reply()

    def ahead(self, request: AheadRequest) -> None:
        """Not to a replica that was too slow lately: whether it still is, drafts find out."""
        link = self._link
        if link is not None and not self._backoff.resting:
            room = link.member.max_positions
            link.send(replace(request, rows=tuple(row for row in request.rows if row.context.base_length <= room)))

    def hint(self, hint: ExitHint) -> None:
        link = self._link
        if link is not None and not self._backoff.resting:
            link.send(hint)

    def branches(self, timeout_s: float = 0.0) -> Sequence[Branch]:
        """The newest, of which no more than MAX_BRANCHES are kept."""
        link = self._link
        if link is not None and not self._backoff.resting:
            self._read_branches(link, timeout_s)
        taken: list[Branch] = []
        while self._branches:
            taken.append(self._branches.popleft())
        return taken

    def _read_branches(self, link: Link, timeout_s: float) -> None:
        until = time.monotonic() + timeout_s
        link.read()
        while not self._branches and link.open and (left := until - time.monotonic()) > 0:
            link.read(left)

    def close(self, sequence_ids: Sequence[int]) -> None:
        link = self._link
        if link is not None:
            link.send(CloseSequences(self._incarnation, tuple(sequence_ids)))

    def _on_message(self, link: Link, message: PoolMessage) -> None:
        match message:
            case DraftReply():
                self._on_reply(link, message)
            case BranchReply() if link is self._link:
                for branch in message.branches:
                    check_exits(branch.exits, link.member.exits)
                self._branches.extend(message.branches)

    def _on_reply(self, link: Link, reply: DraftReply) -> None:
        current = self._round
        if current is None or current.link is not link:
            return
        in_time = self._clock() <= current.expires
        if current.add(reply) and in_time and current.num_drafted:
            self._backoff.answered()

    def _on_end(self, link: Link) -> None:
        """On whichever thread finds it."""
        with self._switching:
            lost = self._link is link
            self._past += link.traffic
            if lost:
                self._link = None
                self._leave_alone(link.member)
        if lost and self._loop is not None:
            with suppress(RuntimeError):  # the loop has closed
                self._loop.call_soon_threadsafe(self._lost.set)

    async def _keep_connected(self) -> None:
        while True:
            self._lost.clear()
            try:
                await self._connect_best()
                await self._rest()
            except Exception:
                logger.exception("looking for a draft replica failed; it is tried again")
                await asyncio.sleep(self._config.lost_every_s)

    async def _rest(self) -> None:
        """Until it is time to look again. A replica that has gone may have told nobody: nobody reads while idle."""
        until = time.monotonic() + self._config.discover_every_s
        while (link := self._link) is not None and not self._lost.is_set() and time.monotonic() < until:
            link.check()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._config.lost_every_s):
                    await self._lost.wait()
        if self._link is None and not self._lost.is_set():
            await asyncio.sleep(self._config.lost_every_s)

    async def _connect_best(self) -> None:
        member = choose(await self._candidates(), self.replica, self._incarnation)
        if member is None or member.incarnation == self.replica:
            return
        self._leave_alone(member)  # unless this goes well, whatever may go wrong
        connection = await connect(member, self._incarnation)
        if connection is None:
            return
        del self._avoid[member.incarnation]
        logger.info("drafting on %s at %s", member.incarnation, member.address)
        self._backoff = Backoff(self._clock)
        with self._switching:
            old, self._link = self._link, Link(member, self._incarnation, connection, self._on_message, self._on_end)
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
        with self._switching:  # against one that is lost now
            self._avoid = {incarnation: until for incarnation, until in self._avoid.items() if until > now}
        fitting = [member for member in members if self._need.met_by(member)]
        if members and not fitting:
            logger.warning("none of %d draft replicas has the vocabulary and the exits of this target", len(members))
        return [member for member in fitting if member.incarnation not in self._avoid]

    def _retire(self, link: Link) -> None:
        """Close a link after a round that may still be on its way there."""

        async def close_later() -> None:
            await asyncio.sleep(self._config.deadline_s)
            await asyncio.to_thread(link.close)

        task = asyncio.create_task(close_later())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
