"""Two devices: the target on cores of its own in this process, the pool on others in its own, a real link between."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

from bench.cells import Cell, Subject
from bench.ours import DraftPoolEngine, TimedClient
from bench.parts import Watched
from bench.pool_process import LinkThread
from deployments.discovery import PoolMember
from deployments.local import depth_rule
from protocol.branch import MirrorClient
from protocol.outcome import RoundOutcome
from protocol.stats import MirrorStats
from router.modes import Mode
from router.policy import Fixed, Off, Policy
from targets.engine import Engine, EngineConfig
from targets.mirror import MirrorConfig
from targets.timeline import RoundRecord


class PairEngine(DraftPoolEngine):
    """Modes plain, fixed (draft and verify in turn), mirror, and chosen between these two by the target, of fixed depth
    and length. By cell is kept what rounds
    took and what came of drafting ahead. mirror: may be changed between runs.
    """

    def __init__(self, subject: Subject, member: PoolMember, mirror: MirrorConfig) -> None:
        """subject: without a drafter, which is the pool's."""
        super().__init__(subject)
        self.mirror = mirror
        self.rounds: dict[Cell, list[RoundOutcome]] = {}
        self.stats: dict[Cell, list[MirrorStats]] = {}
        self.records: dict[Cell, list[RoundRecord]] = {}
        self._member = member
        self._numbers = itertools.count()
        self._link = LinkThread()

    def close(self) -> None:
        super().close()
        self._link.close()

    @contextmanager
    def _started(self, cell: Cell, num_prompts: int) -> Iterator[tuple[Engine, TimedClient | None]]:
        incarnation = f"pair-{next(self._numbers)}"
        config = EngineConfig(max_batch=cell.batch, max_queue=num_prompts, incarnation=incarnation)
        mirror = self._mirror(cell)
        with self._client(incarnation) as client:
            engine = Engine(self.model, self._policy(cell), client if cell.speculates else None, config, mirror)
            engine.start()
            try:
                yield engine, None
            finally:
                self._keep(cell, engine)
                engine.stop()

    def _client(self, incarnation: str) -> AbstractContextManager[MirrorClient]:
        return self._link.client(self._member, incarnation)

    def _mirror(self, cell: Cell) -> MirrorConfig | None:
        """Mirror alone, or the choice between it and drafting in turn."""
        if cell.mode == "mirror":
            return replace(self.mirror, modes=(Mode.HINTED if self.mirror.kappa else Mode.MIRROR,))
        return replace(self.mirror, modes=tuple(Mode)) if cell.mode == "chosen" else None

    def _keep(self, cell: Cell, engine: Engine) -> None:
        stats, timeline = engine.stats().mirror, engine.timeline
        if stats is not None and timeline is not None:
            self.stats.setdefault(cell, []).append(stats)
            self.records.setdefault(cell, []).extend(timeline.last())

    def _policy(self, cell: Cell) -> Policy:
        fixed = Fixed(depth_rule(self._member.exits, cell.depth), cell.length) if cell.speculates else Off()
        return Watched(fixed, self.rounds.setdefault(cell, []))
