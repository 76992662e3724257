"""The links of one target, one to each draft replica that it can use: found, opened, watched and given up.

All of it runs on the event loop, except that any reader may find the end of a link. The engine takes the routes as they
are at the moment: the mapping is replaced, never changed.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from link.backoff import Backoff
from link.connection import Connection, Traffic
from link.discovery import Discover, Found, Need, PoolMember
from link.link import Link, OnMessage, connect
from link.share import Share

logger = logging.getLogger(__name__)

GONE_AFTER = 3  # complete discoveries in a row that find others but not this one: it drains


@dataclass(frozen=True, slots=True)
class TransportConfig:
    """lost_every_s: how often to look for a replica while there is none, and to check those in use. avoid_s: how long
    to avoid one that failed.
    """

    deadline_s: float = 0.05
    discover_every_s: float = 3.0
    lost_every_s: float = 0.25
    avoid_s: float = 5.0


@dataclass(slots=True, eq=False)
class Route:
    """The way to one draft replica. share: its part of the last request."""

    link: Link
    backoff: Backoff
    share: Share | None = None


class Links:
    def __init__(
        self,
        target: str,
        discover: Discover,
        need: Need,
        config: TransportConfig,
        clock: Callable[[], float],
        on_message: OnMessage,
        on_link: Callable[[PoolMember], None] | None,
    ) -> None:
        """clock: of pauses. on_link: called with each replica that is linked."""
        self.routes: Mapping[str, Route] = {}  # by incarnation
        self._target = target
        self._discover = discover
        self._need = need
        self._config = config
        self._clock = clock
        self._on_message = on_message
        self._on_link = on_link
        self._switching = threading.Lock()
        self._past = Traffic()  # of links that have ended
        self._avoid: dict[str, float] = {}
        self._unlisted: Counter[str] = Counter()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lost = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def traffic(self) -> Traffic:
        with self._switching:
            return sum((route.link.traffic for route in self.routes.values()), self._past)

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._keep_connected())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        routes, self.routes = self.routes, {}
        await asyncio.gather(*(asyncio.to_thread(route.link.close) for route in routes.values()))
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _on_end(self, link: Link) -> None:
        """Called on the thread that finds the end."""
        with self._switching:
            self._past += link.traffic
            lost = self._drop(link)
            if lost:
                self._leave_alone(link.member)
        if lost and self._loop is not None:
            with suppress(RuntimeError):  # the loop has closed
                self._loop.call_soon_threadsafe(self._lost.set)

    def _drop(self, link: Link) -> bool:
        """Takes a link out of the routes. Returns whether it was there."""
        kept = {name: route for name, route in self.routes.items() if route.link is not link}
        lost, self.routes = len(kept) < len(self.routes), kept
        return lost

    async def _keep_connected(self) -> None:
        while True:
            self._lost.clear()
            try:
                await self._connect()
                await self._rest()
            except Exception:
                logger.exception("looking for draft replicas failed; it is tried again")
                await asyncio.sleep(self._config.lost_every_s)

    async def _rest(self) -> None:
        """Waits until it is time to look again, and checks idle links, which nobody reads."""
        until = time.monotonic() + self._config.discover_every_s
        while self.routes and not self._lost.is_set() and time.monotonic() < until:
            for route in self.routes.values():
                route.link.check()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._config.lost_every_s):
                    await self._lost.wait()
        if not self.routes and not self._lost.is_set():
            await asyncio.sleep(self._config.lost_every_s)

    async def _connect(self) -> None:
        """Links every usable replica that is not linked yet."""
        found = await self._find()
        self._leave_unlisted(found)
        members = found.members
        usable = [member for member in members if self._need.met_by(member)]
        if members and not usable:
            logger.warning("none of %d draft replicas has the vocabulary and the exits of this target", len(members))
        new = [one for one in usable if one.incarnation not in self.routes and one.incarnation not in self._avoid]
        await asyncio.gather(*(self._open(member) for member in new))

    async def _open(self, member: PoolMember) -> None:
        self._leave_alone(member)  # until the connection stands, whatever goes wrong
        opening = asyncio.create_task(asyncio.to_thread(connect, member, self._target))
        try:
            connection = await asyncio.shield(opening)
        except asyncio.CancelledError:
            self._closing.add(asyncio.create_task(_abandon(opening)))
            raise
        if connection is not None:
            self._use(member, connection)

    def _use(self, member: PoolMember, connection: Connection) -> None:
        link = Link(member, self._target, connection, self._on_message, self._on_end, self._clock)
        with self._switching:
            self._avoid.pop(member.incarnation, None)
            self.routes = {**self.routes, member.incarnation: Route(link, Backoff(self._clock))}
        logger.info("drafting on %s at %s", member.incarnation, member.address)
        if self._on_link is not None:
            self._on_link(member)

    async def _find(self) -> Found:
        try:
            found = await self._discover()
        except Exception:
            logger.exception("discovery of draft replicas failed")
            return Found(is_complete=False)
        now = self._clock()
        with self._switching:  # a link may end on another thread now
            self._avoid = {incarnation: until for incarnation, until in self._avoid.items() if until > now}
        return found

    def _leave_unlisted(self, found: Found) -> None:
        """Retires replicas that discovery lists no more while it finds others: they drain.

        A replica that answers late keeps its link. An incomplete discovery does not say who was late, so it counts
        against nobody.
        """
        listed = {member.incarnation for member in found.members}
        unlisted = {name: route for name, route in self.routes.items() if name not in listed}
        counts = bool(listed) and found.is_complete
        self._unlisted = Counter({name: self._unlisted[name] + counts for name in unlisted})
        for incarnation, route in unlisted.items():
            if self._unlisted[incarnation] >= GONE_AFTER:
                logger.info("draft replica %s is listed no more; its link ends", incarnation)
                self._retire(route.link)

    def _leave_alone(self, member: PoolMember) -> None:
        self._avoid[member.incarnation] = self._clock() + self._config.avoid_s

    def _retire(self, link: Link) -> None:
        """Closes a link after a round that may still be on its way there."""
        with self._switching:
            self._drop(link)

        async def close_later() -> None:
            await asyncio.sleep(self._config.deadline_s)
            await asyncio.to_thread(link.close)

        task = asyncio.create_task(close_later())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


async def _abandon(opening: asyncio.Task[Connection | None]) -> None:
    """Closes what was connected after the target had stopped."""
    connection = await opening
    if connection is not None:
        connection.close()
