"""Question: when one draft replica is short of time, and nothing else is, who shortens, who stops, and what is lost?

Four targets on one draft replica, all in this process, load stepped up. Every device sleeps up to its time (slowed, see
bench/router/devices.py), so cores stay free and the draft replica is the only thing that is short. Rounds of all
targets ride in its passes. Compared are off, every depth and length for all targets, and each target with a router of
its own.
"""

from __future__ import annotations

import itertools
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict

import torch
from transformers import AutoTokenizer

from bench import machine
from bench.arguments import ended
from bench.cells import PAGE
from bench.policies import FIXED, OFF, Prices, RoundRecorder, adaptive, num_drafted, plays
from bench.pool_process import LinkThread
from bench.router.devices import SlowDevice, SlowedDrafter, slowed_target
from bench.router.loads import CONSTANT, LoadCell, all_met, as_json, loads_parser, table
from bench.workload import HELD_OUT, Workload, read_texts
from cli.arguments import several, whole
from drafters.limits import PoolLimits
from drafters.link_profile import served
from drafters.nested import load_nested
from drafters.worker import DraftWorker
from link.discovery import PoolMember
from protocol.request import GenerateRequest, SamplingParams, StopRules, TokenRun
from router.policy import Fixed, Off, Policy
from targets.engine import Engine, EngineConfig
from targets.model import load_target

NUM_TARGETS, NUM_PROMPTS, DEADLINE_S = 4, 64, 5.0
PRICES = Prices()


class Feed:
    """Keeps an engine full: whatever ends is followed by the next prompt. count: tokens within [began_s, end_s)."""

    def __init__(self, engine: Engine, prompts: Sequence[tuple[int, ...]], began_s: float, end_s: float) -> None:
        self.count = 0
        self._engine, self._prompts = engine, prompts
        self._began_s, self._end_s = began_s, end_s
        self._numbers = itertools.count()

    def send(self, max_tokens: int) -> None:
        number = next(self._numbers)
        prompt = self._prompts[(7 * number) % len(self._prompts)]
        request = GenerateRequest(str(number), prompt, SamplingParams(0.0, seed=number), StopRules(max_tokens))
        self._engine.submit(request, lambda run: self._take(run, max_tokens))

    def _take(self, run: TokenRun, max_tokens: int) -> None:
        now = time.monotonic()
        self.count += len(run.token_ids) if self._began_s <= now < self._end_s else 0
        ended = run.finish_reason is not None and run.finish_reason.value in ("stop", "length")
        if ended and now < self._end_s:
            self.send(max_tokens)


class Rig:
    """Real models behind slowed devices."""

    def __init__(self, args: Namespace) -> None:
        self._args, most = args, max(args.load)
        self._link = LinkThread()
        positions = most * 4 * PAGE
        self.devices = [SlowDevice(PRICES.label) for _ in range(NUM_TARGETS + 1)]
        self._models = [
            slowed_target(
                load_target(args.target, dtype=torch.bfloat16, num_positions=positions, page_size=PAGE),
                device,
                lambda rows: PRICES.verify_ms(sum(len(row.tokens) for row in rows)),
            )
            for device in self.devices[:-1]
        ]
        drafter = load_nested(args.drafter, dtype=torch.bfloat16, num_positions=positions * NUM_TARGETS, page_size=PAGE)
        slow = SlowedDrafter(drafter, self.devices[-1], lambda rows: PRICES.draft_ms([row.depth for row in rows]))
        self.exits = drafter.exits
        self._worker = DraftWorker(slow, PoolLimits(max_rows=most * NUM_TARGETS, ahead=1, ttl_s=600.0), time.monotonic)
        texts = read_texts(HELD_OUT, AutoTokenizer.from_pretrained(args.target))
        self._prompts = Workload(texts, "equal", NUM_PROMPTS).prompts("", NUM_PROMPTS)

    def policies(self, name: str) -> list[Policy]:
        """One for each target."""
        if name == OFF:
            return [Off() for _ in range(NUM_TARGETS)]
        if name.startswith(CONSTANT):
            depth, length = map(int, name.removeprefix(CONSTANT).split("/"))
            return [Fixed(depth, length) for _ in range(NUM_TARGETS)]
        most = max(self._args.load)
        return [adaptive(name, PRICES.curves(self.exits), self.exits, most) for _ in range(NUM_TARGETS)]

    def rates(self, policies: Sequence[Policy], load: int) -> tuple[float, ...]:
        """Tokens per second of each target, `load` sequences at a time, after a warm-up."""
        args, began_s = self._args, time.monotonic() + self._args.warm_s
        end_s = began_s + args.measure_s
        with served(self._worker, load * NUM_TARGETS) as pool, ExitStack() as stack:
            engines = [
                stack.enter_context(self._engine(index, policy, pool, load)) for index, policy in enumerate(policies)
            ]
            feeds = [Feed(engine, self._prompts, began_s, end_s) for engine in engines]
            for feed in feeds:
                for _ in range(load):
                    feed.send(args.max_tokens)
            time.sleep(max(0.0, end_s - time.monotonic()))
        return tuple(round(feed.count / args.measure_s, 1) for feed in feeds)

    @contextmanager
    def _engine(self, index: int, policy: Policy, pool: PoolMember, load: int) -> Iterator[Engine]:
        name = f"target-{index}-{time.monotonic_ns()}"
        config = EngineConfig(max_batch=load, incarnation=name)
        with (
            self._link.client(pool, name, DEADLINE_S) as client,
            Engine(self._models[index], policy, client, config) as engine,
        ):
            yield engine


def names(args: Namespace) -> list[str]:
    constants = [f"{CONSTANT}{depth}/{length}" for depth in args.depths for length in args.lengths]
    return [name for policy in args.policies for name in (constants if policy == FIXED else [policy])]


def step(rig: Rig, load: int, args: Namespace) -> list[LoadCell]:
    """One load: everything in turn, again and again."""
    competing = {name: [RoundRecorder(policy) for policy in rig.policies(name)] for name in names(args)}
    cells = {name: LoadCell(name, load) for name in competing}
    for number in range(args.repeat):
        for name, recorders in competing.items():
            cells[name].rates.append(rig.rates(recorders, load))
            sys.stderr.write(f"{number + 1}: {name}, load {load}: {cells[name].totals[-1]:.0f}\n")
    for name, recorders in competing.items():
        rounds = [one for recorder in recorders for one in recorder.rounds]
        cells[name].plays = plays(rounds)
        cells[name].counts = {"drafted": num_drafted(rounds), "accepted": sum(one.num_accepted for one in rounds)}
    return list(cells.values())


def run(args: Namespace) -> int:
    torch.set_num_threads(1)
    rig, cells, place = Rig(args), list[LoadCell](), machine.describe()
    note = f"Slowed devices: {PRICES.label}."
    for load in args.load:
        cells += step(rig, load, args)
        late = [round(device.late, 4) for device in rig.devices]
        report = {"machine": place, "slowed": asdict(PRICES), "late": late, "cells": as_json(cells)}
        machine.save(args.out, report, table(cells, note, place))
    sys.stdout.write(table(cells, note, place))
    return 0 if all_met(cells) else 1


def main() -> int:
    parser = loads_parser(__doc__, "router.slowed.json")
    parser.add_argument("--depths", type=several(whole(1)), default=[2, 4], help="of constants (default: 2,4)")
    parser.add_argument("--lengths", type=several(whole(1)), default=[1, 2, 4, 6], help="of constants (1,2,4,6)")
    parser.set_defaults(load=[1, 2, 4, 8, 16], warm_s=1.5, measure_s=4.0, max_tokens=200)
    return ended("bench.router.slowed", run, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
