"""Two devices: the target on cores of its own in this process, the pool on others in its own, a real link between."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace

from bench.cells import APART, Cell, Subject
from bench.ours import DraftPoolEngine, TimedClient
from bench.parts import Watched
from bench.pool_process import LinkThread, pool_process
from deployments.local import depth_rule
from link.discovery import PoolMember
from protocol.branch import MirrorClient
from protocol.errors import ConfigError
from protocol.outcome import RoundOutcome
from protocol.stats import MirrorStats
from router.costs import CostCurves, DrafterCosts, ModelKey
from router.goodput import Goodput
from router.modes import Mode
from router.policy import Fixed, Off, Policy
from targets.engine import Engine, EngineConfig
from targets.mirror import MirrorConfig
from targets.timeline import RoundRecord


@contextmanager
def paired(
    subject: Subject, mirror: MirrorConfig, cores: Sequence[int], token_ms: float = 0.0, *, measured: int = 0
) -> Iterator[PairEngine]:
    """An open engine, its pool on these cores with rows for twice the batch; otherwise as `pool_process`.

    Raises RuntimeError when the pool does not start, ConfigError without a drafter.
    """
    if subject.drafter is None:
        raise ConfigError("there is no drafter to speculate with; give --drafter")
    num_rows, dtype = 2 * subject.max_batch, subject.dtype
    with pool_process(subject.drafter, cores, num_rows, token_ms, dtype=dtype, measured=measured) as member:
        engine = PairEngine(replace(subject, drafter=None), member, mirror)
        engine.open()
        try:
            yield engine
        finally:
            engine.close()


class PairEngine(DraftPoolEngine):
    """Modes: plain; fixed, or serial (draft and verify in turn); those that draft ahead, each playing its rounds
    (bench/cells.py); and chosen, where the target plays what it finds best. A cell has a fixed depth and length, or
    none, and the router chooses. `mirror` may be changed between runs. By cell is kept what rounds took and what came
    of drafting ahead.
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
        self._curves: CostCurves | None = None

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
        modes = APART.get(cell.mode, (Mode.SERIAL,))
        return None if modes == (Mode.SERIAL,) else replace(self.mirror, modes=modes)

    def latest(self, cell: Cell) -> tuple[RoundRecord, ...]:
        """Of a cell whose target goes on learning."""
        timeline = self._lasts[cell].timeline
        return timeline.last() if timeline else ()

    def _keep(self, cell: Cell, engine: Engine) -> None:
        stats, timeline = engine.stats().mirror, engine.timeline
        if stats is not None and timeline is not None:
            self.stats.setdefault(cell, []).append(stats)
            self.records.setdefault(cell, []).extend(timeline.last())

    def _policy(self, cell: Cell) -> Policy:
        return Watched(self._unwatched(cell), self.rounds.setdefault(cell, []))

    def _unwatched(self, cell: Cell) -> Policy:
        if not cell.speculates:
            return Off()
        if cell.length:
            return Fixed(depth_rule(self.exits, cell.depth), cell.length)
        self._curves = self._curves or self.curves()
        return Goodput(self._curves, replace(self.choices(), linked=True))

    @property
    def exits(self) -> tuple[int, ...]:
        return self._member.exits

    def _drafter_costs(self, key: ModelKey) -> DrafterCosts:
        if self._member.costs is None:
            raise ConfigError("the draft replica has not measured itself; start it so that it does")
        return self._member.costs
