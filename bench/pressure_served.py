"""Four targets and one draft replica as they are served, load stepped up: real processes, beside bench/pressure.py.

Ingress, targets and pool are Ray Serve replicas of one thread each, and clients ask over HTTP: so many requests at a
time of each target, whatever ends followed by the next. Every policy has an application of its own, one after another,
and all have the same processes: with speculation off the pool is there and idle. Whole answers, greedy, EOS ignored;
the tokens of an answer are spread evenly over its time, and those within the measured seconds count. Rounds and drafts
are the engines' own counts, warm-up included.

On two cores all processes share them, and each draft takes its time from some target. So this says how the pool behaves
when it is short (who drafts on, who stops, who is late, whether a target starves), and not what drafting gains.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import torch

from bench import machine
from bench.arguments import ended
from bench.arrivals import Arrival
from bench.load_client import Ask, Client
from bench.prompts import HELD_OUT
from cli.arguments import whole
from cli.prompts import read_prompts
from cli.serve_command import stopped_by_sigterm
from deployments.cluster import running
from deployments.config import AppConfig, HttpConfig, PoolConfig, TargetConfig
from deployments.config_speculation import FixedSpeculation, GoodputSpeculation, Speculation
from link.listening import free_port

RESULT = machine.ROOT / "bench/results/pressure_served.json"
MODELS = machine.ROOT / "demo/models"
NAMES = ("small-0", "small-1", "small-2", "small-3")
OFF, FIXED, GOODPUT = "off", "fixed", "goodput"
DEADLINE_MS, PAGE_SIZE, MAX_BATCH = 100.0, 64, 16
LOOK_S, TIMEOUT_S = 2.0, 120.0
COUNTS = ("num_steps", "num_missed_drafts", "num_drafted", "num_accepted")
POLICIES = MappingProxyType[str, Speculation | None](
    {
        OFF: None,
        FIXED: FixedSpeculation(policy="fixed", depth=2, length=4, deadline_ms=DEADLINE_MS),
        GOODPUT: GoodputSpeculation(deadline_ms=DEADLINE_MS),
    }
)


@dataclass(frozen=True, slots=True)
class Served:
    """One answer, by the clock."""

    model: str
    sent_s: float
    end_s: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Cell:
    """rates: tokens per second of each target. counts: of all targets. plays: how often a look at a target found what
    its router had chosen last, "depth 2/4" for drafts of up to 4 tokens.
    """

    policy: str
    load: int
    rates: tuple[float, ...]
    counts: dict[str, int]
    plays: dict[str, int]

    @property
    def total(self) -> float:
        return sum(self.rates)


def tokens_within(answers: Sequence[Served], began_s: float, end_s: float) -> float:
    """Each answer's tokens spread evenly from when it was asked for to its end."""
    shares = (
        one.num_tokens * max(0.0, min(one.end_s, end_s) - max(one.sent_s, began_s)) / (one.end_s - one.sent_s)
        for one in answers
    )
    return sum(shares)


def play(told: Mapping[str, Any]) -> str:
    """What a target's part of /debug/router says that it chose last."""
    arm = told.get("arm") or told
    if arm.get("rule", OFF) == OFF:
        return OFF
    return f"{arm['rule']}/{arm['length'] if 'length' in arm else max(arm['lengths'])}"


def ratios(cell: Cell, cells: Sequence[Cell]) -> dict[str, float | None]:
    """Beside the other policies at the same load; None where these were not measured, or a target gave nothing."""
    at_load = {one.policy: one for one in cells if one.load == cell.load}
    off, fixed = at_load.get(OFF), at_load.get(FIXED)
    worst = min(a / b for a, b in zip(cell.rates, off.rates, strict=True)) if off and all(off.rates) else None
    over = cell.total / fixed.total if fixed and fixed.total else None
    return {
        "worst_target_over_its_off": None if worst is None else round(worst, 3),
        "total_over_fixed": None if over is None else round(over, 3),
    }


def config_of(policy: str, args: argparse.Namespace) -> AppConfig:
    placed: dict[str, Any] = {"page_size": PAGE_SIZE, "dtype": "bf16", "threads": 1}
    most = max(MAX_BATCH, *args.load)
    path, speculation = str(args.target.resolve()), POLICIES[policy]
    targets = tuple(
        TargetConfig(name=name, path=path, kv_mb=64, max_batch=most, speculation=speculation, **placed)
        for name in NAMES
    )
    pool = PoolConfig(path=str(args.drafter.resolve()), kv_mb=128, num_replicas=1, **placed)
    return AppConfig(targets=targets, pool=pool, http=HttpConfig(port=free_port()))


async def place(client: Client, model: str, numbers: Iterator[int], until_s: float) -> list[Served]:
    """Asks again as soon as it has its answer, and waits for the last one. Raises RuntimeError when one fails."""
    served: list[Served] = []
    while (sent_s := time.perf_counter()) < until_s:
        answer = await client.send(Arrival(model, next(numbers)))
        if answer.error is not None or answer.last_s is None:
            raise RuntimeError(f"a request to {model} failed: {answer.error}")
        served.append(Served(model, sent_s, answer.last_s, answer.num_tokens))
    return served


async def looks(http: httpx.AsyncClient, began_s: float, end_s: float) -> Counter[str]:
    """At what every target plays, now and then within these times."""
    plays: Counter[str] = Counter()
    await asyncio.sleep(began_s - time.perf_counter())
    while time.perf_counter() < end_s:
        told = (await http.get("/debug/router")).json()
        plays.update(play(replica) for replicas in told.values() for replica in replicas)
        await asyncio.sleep(LOOK_S)
    return plays


async def counts(http: httpx.AsyncClient) -> Counter[str]:
    told = (await http.get("/debug/stats")).json()["targets"]
    return Counter({key: sum(replica[key] for replicas in told.values() for replica in replicas) for key in COUNTS})


async def step(url: str, policy: str, load: int, prompts: Sequence[str], args: argparse.Namespace) -> Cell:
    """One load. Each target begins elsewhere among the prompts, at each step at the same one."""
    connections, ask = load * len(NAMES), Ask(args.max_tokens, stream=False)
    places = []
    async with (
        Client(url, prompts, ask, connections=connections, timeout_s=TIMEOUT_S) as client,
        httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, trust_env=False) as http,
    ):
        before = await counts(http)
        began_s = time.perf_counter() + args.warm_s
        end_s = began_s + args.measure_s
        async with asyncio.TaskGroup() as tasks:
            looking = tasks.create_task(looks(http, began_s, end_s))
            for index, name in enumerate(NAMES):
                first = index * len(prompts) // len(NAMES)
                numbers = itertools.cycle([*range(first, len(prompts)), *range(first)])
                places += [tasks.create_task(place(client, name, numbers, end_s)) for _ in range(load)]
        after = await counts(http)
    served = [one for done in places for one in done.result()]
    rates = [
        tokens_within([one for one in served if one.model == name], began_s, end_s) / args.measure_s for name in NAMES
    ]
    told = {key: after[key] - before[key] for key in COUNTS}
    return Cell(policy, load, tuple(round(rate, 1) for rate in rates), told, dict(looking.result().most_common()))


def table(cells: Sequence[Cell], facts: dict[str, object]) -> str:
    lines = [
        "| requests of each target | policy | tok/s of each target | total | worst target over its own off "
        "| total over fixed | drafted tokens, accepted | rounds, without their draft | plays |",
        "|" + "---|" * 9,
    ]
    for cell in sorted(cells, key=lambda one: one.load):
        worst, over = ("-" if value is None else f"{value:.3f}" for value in ratios(cell, cells).values())
        steps, missed, drafted, accepted = (cell.counts[key] for key in COUNTS)
        share = f"{drafted}, {accepted / drafted:.0%}" if drafted else "-"
        looked = sum(cell.plays.values())
        plays = ", ".join(f"{name} {count / looked:.0%}" for name, count in list(cell.plays.items())[:3])
        lines.append(
            f"| {cell.load} | {cell.policy} | {', '.join(f'{rate:.0f}' for rate in cell.rates)} | {cell.total:.0f} "
            f"| {worst} | {over} | {share} | {steps}, {missed} | {plays or '-'} |"
        )
    lines += ["", "All processes share the machine's cores: how the pool behaves, not what drafting gains."]
    return "\n".join([*lines, machine.footer(facts)]) + "\n"


def run(args: argparse.Namespace) -> int:
    prompts = [prompt.text for prompt in read_prompts(args.prompts, 0)]
    facts, cells = machine.describe(), list[Cell]()
    settings = {name: getattr(args, name) for name in ("load", "warm_s", "measure_s", "max_tokens")}
    settings["policies"] = {name: one.model_dump() if one else None for name, one in POLICIES.items()}
    for policy in args.policies:
        config = config_of(policy, args)
        with stopped_by_sigterm(), running(config) as url:
            for load in args.load:
                cell = asyncio.run(step(url, policy, load, prompts, args))
                cells.append(cell)
                told = [asdict(one) | {"total": round(one.total, 1)} | ratios(one, cells) for one in cells]
                machine.save(args.out, {"machine": facts, **settings, "cells": told}, table(cells, facts))
                sys.stderr.write(f"{policy}, load {load}: {cell.total:.0f} tokens/s\n")
    sys.stdout.write(table(cells, facts))
    return 0


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, default=MODELS / "small")
    parser.add_argument("--drafter", type=Path, default=MODELS / "drafter")
    parser.add_argument("--prompts", type=Path, default=HELD_OUT, help="default: held-out code")
    parser.add_argument("--policies", nargs="+", choices=list(POLICIES), default=list(POLICIES))
    parser.add_argument("--load", type=whole(1), nargs="+", default=[1, 2, 4], help="requests at a time of each target")
    parser.add_argument("--warm-s", type=float, default=4.0, help="before each step (default: %(default)s)")
    parser.add_argument("--measure-s", type=float, default=10.0, help="of each step (default: %(default)s)")
    parser.add_argument("--max-tokens", type=whole(2), default=128, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=RESULT)
    return parser.parse_args(arguments)


def main() -> int:
    torch.set_num_threads(1)
    return ended("bench.pressure_served", run, parse())


if __name__ == "__main__":
    sys.exit(main())
