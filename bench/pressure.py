"""Four targets on one draft replica, load stepped up, on slowed devices: who shortens, who stops, what is lost.

Every device sleeps up to its time, so cores stay free and the draft replica is the only thing that is short. Each
target is an engine of its own; the pool is one worker on its thread, as in a draft replica, and rounds of all targets
ride in its passes. Compared are: all off, one fixed depth and length for all, the same for only some of the targets
(what a search over settings per target would find, targets being alike), and each with the router of its own.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoTokenizer

from bench import machine
from bench.command import HELD_OUT
from bench.feed import Counter, Feed
from bench.slowed import Device, SlowedDrafter, slowed_target
from bench.workload import Workload, read_texts
from cli.arguments import whole
from drafters.limits import PoolLimits
from drafters.nested import load_nested
from drafters.picks import PassRow
from drafters.worker import DraftWorker
from link.pool_thread import PoolThread
from protocol.draft import DraftBlock, DraftReply, DraftRequest
from protocol.plan import DepthRule
from protocol.wire import CloseSequences, PoolMessage
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
from router.goodput import Goodput, GoodputConfig
from router.policy import Fixed, Off, Policy
from targets.engine import Engine, EngineConfig
from targets.model import ForwardRow, load_target

RESULT = machine.ROOT / "bench/results/pressure.json"
MODELS = machine.ROOT / "demo/models"
NUM_TARGETS = 4
PAGE = 256
OFF_SHARE, SEARCH_SHARE = 0.98, 0.9


@dataclass(frozen=True, slots=True)
class Devices:
    """Milliseconds: a verifying pass, a token in it; a drafted token for each layer, for each row and layer, and apart
    from its layers.
    """

    verify: float = 40.0
    token: float = 0.5
    layer: float = 0.8
    row_layer: float = 0.1
    step: float = 0.0

    @property
    def label(self) -> str:
        return (
            f"target {self.verify:g} ms + {self.token:g} ms a token, "
            f"drafter {self.step:g} ms a token + {self.layer:g} ms a layer + {self.row_layer:g} ms a row and layer"
        )

    def verify_ms(self, rows: Sequence[ForwardRow]) -> float:
        return self.verify + self.token * sum(len(row.tokens) for row in rows)

    def draft_ms(self, rows: Sequence[PassRow]) -> float:
        """One token for each of these rows."""
        depth = max(row.depth.exits[-1] for row in rows)
        return self.step + depth * self.layer + self.row_layer * sum(row.depth.exits[-1] for row in rows)

    def curves(self, exits: tuple[int, ...]) -> CostCurves:
        key = ModelKey(self.label, "slowed", "bf16", 1, "slowed")
        rows, depths, lengths = (1.0, 64.0), tuple(map(float, exits)), (1.0, 5.0)
        verify = [self.verify + self.token * n * t for n, t, _ in itertools.product(rows, (1, 9), (64, 1024))]
        draft = [
            k * (self.step + d * (self.layer + self.row_layer * n))
            for n, d, _, k in itertools.product(rows, depths, (1, 16), lengths)
        ]
        flat = Curve(ROW_AXES, (rows,), (0.3, 1.0))
        return CostCurves(
            "slowed",
            TargetCosts(
                key,
                Curve(VERIFY_AXES, (rows, (1.0, 9.0), (64.0, 1024.0)), tuple(verify)),
                Curve(PREFILL_AXES, ((16.0, 512.0),), (self.verify + 8, self.verify + 256)),
                flat,
                0.0,
            ),
            DrafterCosts(key, Curve(DRAFT_AXES, (rows, depths, (1.0, 16.0), lengths), tuple(draft)), flat, 0.0),
        )


class ThreadClient:
    """A protocol.draft.DraftClient to a PoolThread in this process."""

    def __init__(self, pool: PoolThread, incarnation: str, deadline_s: float = 5.0) -> None:
        self._pool = pool
        self._incarnation = incarnation
        self._deadline_s = deadline_s

    def open(self, request: DraftRequest) -> None:
        self._pool.receive(request, lambda reply: None)

    def draft(self, request: DraftRequest) -> DraftReply | None:
        over, blocks, waits = threading.Event(), dict[int, DraftBlock](), [0.0]

        def take(reply: PoolMessage) -> None:
            assert isinstance(reply, DraftReply)
            blocks.update((block.sequence_id, block) for block in reply.blocks)
            waits.append(reply.wait_ms)
            if len(blocks) == len(request.rows):
                over.set()

        self._pool.receive(request, take)
        if not over.wait(self._deadline_s):
            return None
        ordered = tuple(blocks[row.sequence_id] for row in request.rows)
        return DraftReply(request.incarnation, request.round_id, ordered, max(waits))

    def close(self, sequence_ids: Sequence[int]) -> None:
        self._pool.receive(CloseSequences(self._incarnation, tuple(sequence_ids)), lambda reply: None)


@dataclass(slots=True)
class Rig:
    """Real models behind slowed devices."""

    devices: Devices
    args: argparse.Namespace
    models: list[Any] = field(init=False)
    worker: DraftWorker = field(init=False)
    exits: tuple[int, ...] = field(init=False)
    prompts: list[tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        most = max(self.args.load)
        positions = most * 4 * PAGE
        self.models = [
            slowed_target(
                load_target(self.args.target, dtype=torch.bfloat16, num_positions=positions, page_size=PAGE),
                Device(self.devices.label),
                self.devices.verify_ms,
            )
            for _ in range(NUM_TARGETS)
        ]
        drafter = load_nested(
            self.args.drafter, dtype=torch.bfloat16, num_positions=positions * NUM_TARGETS, page_size=PAGE
        )
        self.exits = drafter.exits
        slow = SlowedDrafter(drafter, Device(self.devices.label), self.devices.draft_ms)
        limits = PoolLimits(max_rows=most * NUM_TARGETS, ahead=1, ttl_s=600.0)
        self.worker = DraftWorker(slow, limits, time.monotonic)
        tokenizer = AutoTokenizer.from_pretrained(self.args.target)
        self.prompts = Workload(read_texts(HELD_OUT, tokenizer), "equal", 64).prompts("", 64)

    @contextmanager
    def pool(self) -> Iterator[PoolThread]:
        thread = PoolThread(self.worker, time.monotonic)
        thread.start()
        try:
            yield thread
        finally:
            thread.stop()

    def rates(self, policies: Sequence[Policy], load: int) -> list[float]:
        """Tokens per second of each target, `load` sequences at a time, after a warm-up."""
        with self.pool() as pool:
            counters = [Counter(self.args.warm_s, self.args.measure_s) for _ in policies]
            engines = [self._engine(index, policy, pool, load) for index, policy in enumerate(policies)]
            feeds = [
                Feed(engine, counter, self.prompts, load, self.args.max_tokens)
                for engine, counter in zip(engines, counters, strict=True)
            ]
            for feed in feeds:
                feed.start()
            time.sleep(self.args.warm_s + self.args.measure_s)
            for engine in engines:
                engine.stop()
        return [counter.count / self.args.measure_s for counter in counters]

    def _engine(self, index: int, policy: Policy, pool: PoolThread, load: int) -> Engine:
        name = f"target-{index}-{time.monotonic_ns()}"
        engine = Engine(
            self.models[index], policy, ThreadClient(pool, name), EngineConfig(max_batch=load, incarnation=name)
        )
        engine.start()
        return engine

    def router(self) -> Goodput:
        rules = tuple(DepthRule((exit_,)) for exit_ in self.exits)
        return Goodput(self.devices.curves(self.exits), GoodputConfig(rules, self.exits, linked=True))


def settings(rig: Rig, args: argparse.Namespace) -> dict[str, list[Policy]]:
    """What competes: named lists of one policy per target."""
    made: dict[str, list[Policy]] = {"off": [Off() for _ in range(NUM_TARGETS)]}
    for depth, length in itertools.product(args.depths, args.lengths):
        fixed = Fixed(DepthRule((depth,)), length)
        for some in args.speculating:
            made[f"{depth}/{length} for {some}"] = [fixed] * some + [Off()] * (NUM_TARGETS - some)
    return made


def step(rig: Rig, load: int, args: argparse.Namespace) -> dict[str, Any]:
    """One load: everything in turn, again and again; the best fixed is chosen on one half of the repetitions."""
    routers: list[Policy] = [rig.router() for _ in range(NUM_TARGETS)]
    made = settings(rig, args)
    taken: dict[str, list[list[float]]] = {name: [] for name in (*made, "router")}
    for _ in range(args.repeat):
        for name, policies in [*made.items(), ("router", routers)]:
            for policy in policies:
                if isinstance(policy, Goodput):
                    policy.restart()
            taken[name].append(rig.rates(policies, load))
    totals = {name: [sum(rates) for rates in repetitions] for name, repetitions in taken.items()}
    best = max(made, key=lambda name: median(totals[name][::2]))
    off = [median(rates) for rates in zip(*taken["off"], strict=True)]
    ours = [median(rates) for rates in zip(*taken["router"], strict=True)]
    told = {
        "load": load,
        "off": [round(rate, 1) for rate in off],
        "router": [round(rate, 1) for rate in ours],
        "worst_target_over_its_off": round(min(a / b for a, b in zip(ours, off, strict=True)), 3),
        "best_fixed": best,
        "router_over_best_fixed": round(median(a / b for a, b in zip(totals["router"], totals[best], strict=True)), 3),
        "totals": {name: [round(value, 1) for value in values] for name, values in totals.items()},
        "played": [router.played() for router in routers if isinstance(router, Goodput)],
        "wait_ms": [round(router.predictor.wait_ms, 2) for router in routers if isinstance(router, Goodput)],
    }
    sys.stderr.write(
        f"load {load}: router {sum(ours):.0f}, off {sum(off):.0f}, best fixed {best} "
        f"{median(totals[best]):.0f}; worst target {told['worst_target_over_its_off']} of its off\n"
    )
    return told


def table(report: dict[str, Any]) -> str:
    lines = [
        "| sequences of each target | off, tok/s | router | worst target over its own off | best fixed | tok/s "
        "| router over best fixed | plays | wait at the pool, ms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for step_ in report["steps"]:
        best, played = step_["best_fixed"], step_["played"][0]
        plays = ", ".join(f"{name} {share:.0%}" for name, share in list(played.items())[:2])
        lines.append(
            f"| {step_['load']} | {sum(step_['off']):.0f} | {sum(step_['router']):.0f} "
            f"| {step_['worst_target_over_its_off']:.3f} | {best} | {median(step_['totals'][best]):.0f} "
            f"| {step_['router_over_best_fixed']:.3f} | {plays} | {max(step_['wait_ms']):.1f} |"
        )
    lines += ["", f"Slowed devices: {report['slowed']}.", machine.footer(report["machine"])]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, default=MODELS / "small")
    parser.add_argument("--drafter", type=Path, default=MODELS / "drafter")
    parser.add_argument("--load", type=whole(1), nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--depths", type=whole(1), nargs="+", default=[2, 4])
    parser.add_argument("--lengths", type=whole(1), nargs="+", default=[1, 2, 4, 6])
    parser.add_argument("--speculating", type=whole(1), nargs="+", default=[2, 4], help="targets that draft")
    parser.add_argument("--repeat", type=whole(2), default=3)
    parser.add_argument("--warm-s", type=float, default=1.5)
    parser.add_argument("--measure-s", type=float, default=4.0)
    parser.add_argument("--max-tokens", type=whole(2), default=200)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rig = Rig(Devices(), args)
    steps = [step(rig, load, args) for load in args.load]
    report = {
        "machine": machine.describe(),
        "slowed": rig.devices.label,
        "devices": asdict(rig.devices),
        "late": {
            "targets": [model.device.num_late / max(model.device.num_steps, 1) for model in rig.models],
        },
        "asked": {"every target over its own off": OFF_SHARE, "total over the best fixed": SEARCH_SHARE},
        "steps": steps,
    }
    machine.save(args.out, report, table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
