"""A target's way to the pool: persistent links to all draft replicas that it can use, each with its own sequences.

The engine's thread asks, then reads the links itself while it waits, up to its deadline; it reads branches in passing.
A request is split by row, since each sequence has one replica (link/placement.py), and the answers are put together
again. A replica that does not know a sequence after a move answers NEED_CONTEXT. One that is too slow is left alone for
a while, and only its own sequences go without drafts.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from link.backoff import Ask
from link.connection import Traffic
from link.discovery import Discover, Need, PoolMember
from link.link import Link, read_any
from link.links import Links, Route, TransportConfig
from link.placement import SequencePlacement
from link.share import Share, fitting, merged, wait_for
from protocol.branch import AheadRequest, Branch, BranchReply
from protocol.draft import DraftReply, DraftRequest, DraftStatus
from protocol.limits import MAX_MS
from protocol.wire import CloseSequences, PoolMessage

MAX_BRANCHES = 1024
POOL_SHARE = 0.8  # of the deadline is the pool's, the rest is for the way
LONG = 0.5  # of the deadline: what waits so long for nothing waits in vain

T = TypeVar("T")


class LinkedDraftClient:
    """A protocol.branch.AheadClient. `start` and `stop` run on the event loop, all else on the engine's thread."""

    def __init__(
        self,
        incarnation: str,
        discover: Discover,
        need: Need,
        config: TransportConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_link: Callable[[PoolMember], None] | None = None,
    ) -> None:
        """clock: of deadlines and pauses. on_link: called on the event loop with each replica that is linked."""
        self._incarnation = incarnation
        self._config = config or TransportConfig()
        self._clock = clock
        self._links = Links(incarnation, discover, need, self._config, clock, self._on_message, on_link)
        self._placement = SequencePlacement(incarnation)
        self._branches: deque[Branch] = deque(maxlen=MAX_BRANCHES)

    @property
    def members(self) -> tuple[PoolMember, ...]:
        """What the linked draft replicas told of themselves."""
        return tuple(route.link.member for route in self._links.routes.values())

    @property
    def member(self) -> PoolMember | None:
        """One of the members. They all have the vocabulary and the exits that this target needs."""
        return next(iter(self.members), None)

    @property
    def replica(self) -> str | None:
        """The incarnation of that member."""
        return self.member.incarnation if self.member else None

    @property
    def traffic(self) -> Traffic:
        """The traffic with all draft replicas so far."""
        return self._links.traffic

    async def start(self) -> None:
        await self._links.start()

    async def stop(self) -> None:
        await self._links.stop()

    def open(self, request: DraftRequest) -> None:
        for route, rows in self._split(request.rows, lambda row: row.sequence_id):
            route.link.send(fitting(replace(request, rows=rows), route.link.member.max_positions))

    def draft(self, request: DraftRequest) -> DraftReply | None:
        shares = self._ask(request)
        return self._answer(request, shares) if shares else None

    def ahead(self, request: AheadRequest) -> None:
        """Asks for branches, except of replicas that were too slow lately: requests for drafts find out whether they
        still are.
        """
        for route, rows in self._split(request.rows, lambda row: row.context.sequence_id):
            if not route.backoff.resting:
                room = route.link.member.max_positions
                route.link.send(replace(request, rows=tuple(row for row in rows if row.context.base_length <= room)))

    def branches(self, timeout_s: float = 0.0) -> Sequence[Branch]:
        """The newest branches; at most MAX_BRANCHES are kept."""
        until = self._clock() + timeout_s
        links = [route.link for route in self._links.routes.values() if not route.backoff.resting]
        for link in links:
            link.read()
        while not self._branches and (links := [link for link in links if link.open]):
            if (left_s := until - self._clock()) <= 0:
                break
            read_any(links, left_s)
        taken: list[Branch] = []
        while self._branches:
            taken.append(self._branches.popleft())
        return taken

    def close(self, sequence_ids: Sequence[int]) -> None:
        for route, ids in self._split(sequence_ids, lambda sequence_id: sequence_id):
            route.link.send(CloseSequences(self._incarnation, ids))
        self._placement.forget(sequence_ids)

    def _ask(self, request: DraftRequest) -> list[Share]:
        """Sends each replica its part. Returns those to wait for."""
        shares = []
        for route, rows in self._split(request.rows, lambda row: row.sequence_id):
            ask = route.backoff.ask()
            if ask is Ask.SKIP:
                continue
            part = replace(request, rows=rows, deadline_ms=request.deadline_ms or self._deadline_ms)
            share = route.share = Share(part, route.link, self._clock() + self._config.deadline_s)
            route.link.send(share.asked)
            if ask is Ask.WAIT:
                shares.append(share)
        return shares

    def _answer(self, request: DraftRequest, shares: Sequence[Share]) -> DraftReply | None:
        """Waits for the answers, each until it is late."""
        long = self._clock() + LONG * self._config.deadline_s
        wait_for(shares, self._clock)
        for route in self._links.routes.values():
            if route.share and route.share in shares and route.link.open and route.share.mostly_late(long):
                route.backoff.missed()
        return merged(request, shares)

    @property
    def _deadline_ms(self) -> float:
        return min(1e3 * POOL_SHARE * self._config.deadline_s, MAX_MS)

    def _split(self, rows: Iterable[T], sequence_id: Callable[[T], int]) -> list[tuple[Route, tuple[T, ...]]]:
        """Splits rows by the replicas of their sequences. Reads what came late first, so that ended links are known."""
        for route in self._links.routes.values():
            route.link.read()
        routes: Mapping[str, Route] = self._links.routes
        found: dict[str, list[T]] = {}
        for row in rows:
            home = self._placement.home(sequence_id(row), routes.keys())
            if home is not None:
                found.setdefault(home, []).append(row)
        return [(routes[home], tuple(own)) for home, own in found.items()]

    def _on_message(self, link: Link, message: PoolMessage) -> None:
        match message:
            case DraftReply():
                self._on_reply(link, message)
            case BranchReply():
                for branch in message.branches:
                    if self._placement.is_at(branch.sequence_id, link.member.incarnation):
                        self._branches.append(branch)

    def _on_reply(self, link: Link, reply: DraftReply) -> None:
        routes = self._links.routes
        route = routes.get(link.member.incarnation)
        if route is None or route.link is not link or route.share is None:
            return
        share, now = route.share, self._clock()
        for block in share.add(reply, now):
            if block.status is DraftStatus.BUSY:
                self._placement.refused(block.sequence_id, routes.keys())
            else:
                self._placement.served(block.sequence_id)
        if share.is_over and now < share.expires:
            if share.num_drafted:
                route.backoff.answered()
            elif share.num_not_yet and now < share.expires - (1 - POOL_SHARE) * self._config.deadline_s:
                route.backoff.not_yet()  # before the pool's deadline: it lacks a context, not time
