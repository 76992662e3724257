"""Two devices: the target on cores of its own in this process, the pool on others in its own, a real link between."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
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
    """Modes of fixed depth and length: plain; fixed (draft and verify in turn); ahead (mirror without early picks);
    mirror (as `mirror` says, which may be changed between runs); and chosen between these by the target. By cell is
    kept what rounds took and what came of drafting ahead.
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
        self._stack = ExitStack()
        self._lasts: dict[Cell, Engine] = {}

    def close(self) -> None:
        self._stack.close()
        super().close()
        self._link.close()

    @contextmanager
    def _started(self, cell: Cell, num_prompts: int) -> Iterator[tuple[Engine, TimedClient | None]]:
        if cell.mode == "chosen":  # learns which rounds pay, as a served target does
            yield self._lasting(cell, num_prompts), None
        else:
            with self._open(cell, num_prompts) as engine:
                yield engine, None

    def _lasting(self, cell: Cell, num_prompts: int) -> Engine:
        if cell not in self._lasts:
            self._lasts[cell] = self._stack.enter_context(self._open(cell, num_prompts))
        return self._lasts[cell]

    @contextmanager
    def _open(self, cell: Cell, num_prompts: int) -> Iterator[Engine]:
        incarnation = f"pair-{next(self._numbers)}"
        config = EngineConfig(max_batch=cell.batch, max_queue=num_prompts, incarnation=incarnation)
        with self._client(incarnation) as client:
            drafts = client if cell.speculates else None
            engine = Engine(self.model, self._policy(cell), drafts, config, self._mirror(cell))
            engine.start()
            try:
                yield engine
            finally:
                self._keep(cell, engine)
                engine.stop()

    def _client(self, incarnation: str) -> AbstractContextManager[MirrorClient]:
        return self._link.client(self._member, incarnation)

    def _mirror(self, cell: Cell) -> MirrorConfig | None:
        modes = {"ahead": (Mode.MIRROR,), "mirror": (Mode.HINTED,), "chosen": tuple(Mode)}
        return replace(self.mirror, modes=modes[cell.mode]) if cell.mode in modes else None

    def _keep(self, cell: Cell, engine: Engine) -> None:
        stats, timeline = engine.stats().mirror, engine.timeline
        if stats is not None and timeline is not None:
            self.stats.setdefault(cell, []).append(stats)
            self.records.setdefault(cell, []).extend(timeline.last())

    def _policy(self, cell: Cell) -> Policy:
        fixed = Fixed(depth_rule(self._member.exits, cell.depth), cell.length) if cell.speculates else Off()
        return Watched(fixed, self.rounds.setdefault(cell, []))
