"""Two devices: the target on cores of its own in this process, the pool on others in its own, a real link between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from bench.cells import APART, CHOSEN, Cell, Subject
from bench.ours import DraftPoolEngine
from bench.pool_process import LinkThread, PoolSettings, pool_process
from link.discovery import PoolMember
from protocol.errors import ConfigError
from protocol.plan import Mode
from protocol.stats import RoundStats
from router.costs import DrafterCosts, ModelKey
from router.policy import Policy
from targets.engine import Engine, EngineConfig

DEADLINE_S = 1.0


@contextmanager
def paired(subject: Subject, cores: tuple[int, ...], *, measured: int = 0) -> Iterator[PairEngine]:
    """An open engine, its pool on these cores with rows for twice the batch.

    Raises RuntimeError when the pool does not start, ConfigError without a drafter.
    """
    if subject.drafter is None:
        raise ConfigError("there is no drafter to speculate with; give --drafter")
    place = PoolSettings(subject.drafter, cores, 2 * subject.max_batch, subject.dtype, measured)
    with pool_process(place) as member:
        engine = PairEngine(subject, member)
        engine.open()
        try:
            yield engine
        finally:
            engine.close()


class PairEngine(DraftPoolEngine):
    """Modes: plain; in turn and ahead at a cell's depth and length; chosen, where the router has its choice. stats: of
    drafting ahead, by cell.
    """

    name = "draftpool, pool apart"

    def __init__(self, subject: Subject, member: PoolMember) -> None:
        super().__init__(replace(subject, drafter=None))
        self._member = member
        self._link = LinkThread()

    def close(self) -> None:
        super().close()
        self._link.close()

    @property
    def stats(self) -> dict[Cell, RoundStats]:
        return {cell: engine.stats() for cell, (engine, _) in self._engines.items() if cell.mode in APART}

    @contextmanager
    def _started(self, cell: Cell, policy: Policy, config: EngineConfig) -> Iterator[Engine]:
        with self._link.client(self._member, config.incarnation, DEADLINE_S) as client:
            ahead = Mode.AHEAD in APART.get(cell.mode, ())
            with Engine(self.model, policy, client if cell.speculates else None, config, ahead) as engine:
                yield engine

    @property
    def exits(self) -> tuple[int, ...]:
        return self._member.exits

    def _drafter_costs(self, key: ModelKey) -> DrafterCosts:
        if self._member.costs is None:
            raise ConfigError(f"mode {CHOSEN} needs a draft replica that has measured itself")
        return self._member.costs
