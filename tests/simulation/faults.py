"""Games of faults: by seed some targets, a pool, a network that delays, loses, reorders, doubles, cuts and lies, and in
every other game a target that sends the pool garbage.

    python -m tests.simulation.faults --seeds 2000

A game is won when every text is what the plain loop writes, nothing is left of it anywhere, and no part failed for any
reason but a lie. Some tokens are drafted with confidence 1, and these are right: so what is proposed behind an outcome
that did not happen shows, though it changes no text.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from drafters.limits import PoolLimits
from link.links import TransportConfig
from model.pages import PageLedger
from protocol.plan import BatchView, Plan
from protocol.record import RoundRecord
from router.costs import (
    DRAFT_AXES,
    PREFILL_AXES,
    ROW_AXES,
    VERIFY_AXES,
    CostCurves,
    Curve,
    DrafterCosts,
    ModelKey,
    TargetCosts,
)
from simulation.models import Ledger, Memory, simulated_target
from simulation.network import Faults
from simulation.simulate import Circumstances, PoolSpec, Simulation, TargetSpec
from simulation.target import Arrival, Target
from simulation.text import Drawn, Rates, World
from targets.plain import generate
from targets.scheduler import SchedulerConfig
from tests.simulation.lies import liar, plan_deaths, plan_hostility

KEY = ModelKey("by hand", "0", "bf16", 1, "1")
EXITS = (2, 4, 6)
SURE = Drawn(EXITS, (Rates(((0.2, 0.6, 0.9, 1.0), (0.5, 0.8, 1.0, 1.0), (0.7, 0.9, 1.0, 1.0))),))
KINDS = ("spike", "loss", "reorder", "twice", "cut")
VOCAB = 40
CHECK_EVERY_S = 0.02


class Erratic:
    """A policy that plans whatever is allowed, by seed."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._depth = self._rng.choice(EXITS)
        self._in_turn = self._rng.choice((0.0, 0.0, 0.5))  # of the rounds where they may be ahead

    def opening(self) -> int | None:
        return self._depth if self._rng.random() < 0.7 else None

    def plan(self, view: BatchView) -> Plan:
        rng = self._rng
        self._depth = rng.choice(EXITS) if rng.random() < 0.1 else self._depth
        lengths = tuple(min(rng.randrange(7), max(one.remaining - 1, 0)) for one in view.sequences)
        own = tuple(rng.choice((None, None, *EXITS)) for _ in lengths) if rng.random() < 0.2 else ()
        stop, mode = rng.choice((0.0, 0.0, 0.3)), view.modes[-(rng.random() >= self._in_turn)]
        return Plan(self._depth if any(lengths) else None, lengths, own, stop, mode)

    def observe(self, record: RoundRecord) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Game:
    """deaths: of draft replicas, in a second. hostile_s: how often a target sends garbage to the pool; 0: never."""

    targets: tuple[TargetSpec, ...]
    pool: PoolSpec
    around: Circumstances
    deaths: float
    hostile_s: float = 0.0

    def simulation(self) -> Simulation:
        simulation = Simulation(self.targets, self.pool, self.around)
        plan_deaths(simulation, random.Random(self.around.seed), self.deaths)
        if self.hostile_s:
            plan_hostility(simulation, self.around.seed, self.hostile_s)
        return simulation


def game(seed: int, ledger: Ledger = PageLedger) -> Game:
    """ledger: of the pool."""
    rng = random.Random(seed)
    targets = tuple(_target(rng, f"target {number}") for number in range(rng.choice((1, 1, 2))))
    pool = PoolSpec(
        num_replicas=rng.choice((1, 1, 2)),
        limits=PoolLimits(max_rows=rng.choice((3, 16)), prefill_tokens=rng.choice((8, 64)), idle_s=0.05, ttl_s=0.5),
        memory=Memory(rng.choice((12, 40, 400)), 4, rng.choice((60, 200)), ledger),
    )
    around = Circumstances(seed, noise=0.1, faults=_faults(rng), vocab_size=VOCAB)
    return Game(targets, pool, around, rng.choice((0.0, 0.0, 2.0)), rng.choice((0.0, 0.0, 0.001, 0.01)))


def play(one: Game) -> str:
    """What went wrong; nothing when all went well."""
    simulation, raised = one.simulation(), _Raised()
    _check_often(simulation)
    logging.getLogger().addHandler(raised)
    try:
        simulation.run()
    except AssertionError as error:
        return f"the books: {error}"
    finally:
        logging.getLogger().removeHandler(raised)
    wrong = (_wrong(one, simulation.world, *pair) for pair in zip(one.targets, simulation.targets, strict=True))
    return raised.told or next(filter(None, wrong), "")


def _wrong(one: Game, world: World, spec: TargetSpec, target: Target) -> str:
    plain = simulated_target(world, lambda *_: None, spec.memory)
    for served in target.served:
        wanted = generate(plain, served.request)
        if served.tokens != wanted.tokens[wanted.num_prompt :] or served.reason is not wanted.finish_reason:
            return f"request {served.request.request_id} of {target.name} has another text"
    if not one.around.faults.lie and any(map(_misplaced, target.records)):
        return f"{target.name} verified a draft behind an outcome that did not happen"
    return ""


def lost(seeds: Iterator[int] | range, ledger: Ledger = PageLedger) -> Iterator[tuple[int, str]]:
    """The games that went wrong, and how."""
    return ((seed, why) for seed in seeds if (why := play(game(seed, ledger))))


def _target(rng: random.Random, name: str) -> TargetSpec:
    starts = sorted(rng.uniform(0.0, rng.choice((0.3, 0.3, 0.3, 3.0))) for _ in range(rng.randint(1, 5)))
    stops = frozenset({7}) if rng.random() < 0.3 else frozenset()
    arrivals = [Arrival(at, rng.randint(1, 30), rng.randint(1, 40), stops) for at in starts]
    seed = rng.randrange(1 << 30)
    return TargetSpec(
        name,
        _costs(rng),
        lambda: Erratic(seed),
        SURE,
        arrivals,
        SchedulerConfig(max_batch=rng.choice((2, 4)), prefill_chunk=rng.choice((8, 64))),
        rng.random() < 0.7,
        TransportConfig(deadline_s=0.01, discover_every_s=0.2, lost_every_s=0.02, avoid_s=0.1),
        Memory(rng.choice((24, 60)), 4, 256),
    )


def _costs(rng: random.Random) -> CostCurves:
    """The same for passes of any size."""

    def curve(axes: tuple[str, ...], ms: float) -> Curve:
        return Curve(axes, ((1.0,),) * len(axes), (ms,))

    verify, prefill = (curve(axes, rng.uniform(1.0, 6.0)) for axes in (VERIFY_AXES, PREFILL_AXES))
    target = TargetCosts(KEY, verify, prefill, curve(ROW_AXES, 0.1), 0.0)
    return CostCurves(
        "game", target, DrafterCosts(KEY, curve(DRAFT_AXES, rng.uniform(0.1, 3.0)), curve(ROW_AXES, 0.4), 0.0)
    )


def _faults(rng: random.Random) -> Faults:
    """Some kinds, some of them often."""
    found = Faults(late_s=0.05, lie=liar(rng.choice((0.02, 0.2))) if rng.random() < 0.4 else None)
    for kind in KINDS:
        if rng.random() < 0.4:
            share = rng.choice((0.01, 0.05, 0.2)) if kind != "cut" else 0.01
            found = replace(found, **{kind: share})  # type: ignore[arg-type]
    return found


class _Raised(logging.Handler):
    """Remembers the first exception that was caught and logged: whoever lies is left without one."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.told = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.told = self.told or f"{record.getMessage()}: {record.exc_info and record.exc_info[1]!r}"


def _check_often(simulation: Simulation) -> None:
    def check() -> None:
        simulation.check()
        simulation.loop.call_in(CHECK_EVERY_S, check)

    simulation.loop.call_in(CHECK_EVERY_S, check)


def _misplaced(record: RoundRecord) -> bool:
    """Whether a token of confidence 1 was refused where all before it were accepted."""
    return any(row.num_accepted < row.num_proposed and row.confidences[row.num_accepted] >= 1.0 for row in record.rows)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.faults", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=200, help="how many games (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: %(default)s)")
    args = parser.parse_args()
    logging.getLogger().addHandler(logging.NullHandler())  # the games themselves say what went wrong
    began, num_lost = time.perf_counter(), 0
    for seed, why in lost(range(args.first, args.first + args.seeds)):
        num_lost += 1
        sys.stdout.write(f"seed {seed}: {why}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{args.seeds} games, {num_lost} lost, {time.perf_counter() - began:.1f} s\n")
    return 1 if num_lost else 0


if __name__ == "__main__":
    sys.exit(main())
