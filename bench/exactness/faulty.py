"""A way to the pool that is not to be trusted: what may go wrong on a link or in a pool, at random by a seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from protocol.branch import AheadClient, AheadRequest, Branch
from protocol.draft import DraftReply, DraftRequest


@dataclass(frozen=True, slots=True)
class LinkFaults:
    """Chances. Of a branch: to come late, twice, never, under another sequence's name, or with other tokens.

    lost: of a message to the pool. missed: of a draft; late_row: of each of its rows; stale: that the answer before
    comes in its place, as one that was late or came twice does. dies: of the pool, when it has begun to draft or to
    draft ahead; it comes back after `away` rounds and knows nothing.
    """

    late: float = 0.3
    doubled: float = 0.2
    dropped: float = 0.1
    foreign: float = 0.1
    wrong: float = 0.1
    lost: float = 0.05
    missed: float = 0.05
    late_row: float = 0.05
    stale: float = 0.05
    dies: float = 0.0
    away: int = 5


class FaultyClient:
    """An AheadClient around those that `connect` makes, one for every life of the pool."""

    def __init__(self, connect: Callable[[], AheadClient], seed: int, faults: LinkFaults | None = None) -> None:
        self.num_deaths = 0
        self._connect = connect
        self._rng = random.Random(seed)
        self._faults = faults or LinkFaults()
        self._pool: AheadClient | None = connect()
        self._back_in = 0
        self._held: list[Branch] = []
        self._before: DraftReply | None = None

    def open(self, request: DraftRequest) -> None:
        if self._pool and not self._happens(self._faults.lost):
            self._pool.open(request)

    def draft(self, request: DraftRequest) -> DraftReply | None:
        self._live_on()
        reply = self._pool.draft(request) if self._pool and not self._happens(self._faults.lost) else None
        self._maybe_die()
        if reply is None or self._happens(self._faults.missed):
            return None
        before, self._before = self._before, reply
        if self._happens(self._faults.stale):
            return before
        return replace(reply, blocks=tuple(b for b in reply.blocks if not self._happens(self._faults.late_row)))

    def ahead(self, request: AheadRequest) -> None:
        self._live_on()
        if self._pool and not self._happens(self._faults.lost):
            self._pool.ahead(request)
        self._maybe_die()

    def branches(self, timeout_s: float = 0.0) -> Sequence[Branch]:
        came = [*self._held, *(self._pool.branches(timeout_s) if self._pool else ())]
        self._held = []
        self._rng.shuffle(came)
        return [given for branch in came for given in self._pass_on(branch)]

    def close(self, sequence_ids: Sequence[int]) -> None:
        if self._pool:
            self._pool.close(sequence_ids)

    def kill(self, away: int) -> None:
        self._pool, self._back_in = None, away
        self.num_deaths += 1

    def _pass_on(self, branch: Branch) -> list[Branch]:
        if self._happens(self._faults.late):
            self._held.append(branch)
            return []
        if self._happens(self._faults.dropped):
            return []
        if self._happens(self._faults.foreign):
            branch = replace(branch, sequence_id=self._rng.randrange(8))
        if self._happens(self._faults.wrong):
            branch = replace(branch, tokens=tuple(self._rng.randrange(1 << 10) for _ in branch.tokens))
        return [branch] * (2 if self._happens(self._faults.doubled) else 1)

    def _maybe_die(self) -> None:
        if self._pool and self._happens(self._faults.dies):
            self.kill(self._faults.away)

    def _live_on(self) -> None:
        if self._pool is None:
            self._back_in -= 1
            if self._back_in <= 0:
                self._pool = self._connect()

    def _happens(self, chance: float) -> bool:
        return self._rng.random() < chance
