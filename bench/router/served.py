"""Question: as served, does a learning policy keep up with the best constant and with off, when the pool is short?

Targets of one checkpoint and one draft replica as Ray Serve runs them, in real processes of one thread each; clients
ask over HTTP: so many requests at a time of each target, whatever ends followed by the next. In each repetition every
policy has an application of its own, one after another, beginning with another one each time, and all have the same
processes: with speculation off the pool is there and idle. Whole answers, greedy, EOS ignored; the tokens of an answer
are spread evenly over its time, and those within the measured seconds count. Clients that begin together go in step,
so these seconds must hold many answers of each.

On two cores all processes share them, and each draft takes its time from some target. So this says how the pool behaves
when it is short. `--apart` shows what drafting gains: the targets have core 0, the pool has core 1.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from bench import machine
from bench.arguments import add_weights, ended, given
from bench.client import LoadClient, RequestTemplate, ServedAnswer
from bench.policies import FIXED, OFF
from bench.router.loads import CONSTANT, LoadCell, all_met, as_json, loads_parser, table
from bench.workload import HELD_OUT, LONGEST, read_texts
from cli.arguments import whole
from cli.serve_command import stopped_by_sigterm
from deployments.cluster import running
from deployments.config import AppConfig
from link.listening import free_port
from protocol.errors import ConfigError

DEADLINE_MS, PAGE_SIZE, MAX_BATCH = 100.0, 64, 16
COUNTS = {"steps": "num_steps", "missed": "num_unanswered", "drafted": "num_proposed", "accepted": "num_accepted"}
SHARED = "All processes share the machine's cores: how the pool behaves when it is short, not what drafting gains."
APART = "The targets have core 0, the pool has core 1."


def names(args: Namespace) -> tuple[str, ...]:
    return tuple(f"target-{number}" for number in range(args.num_targets))


def speculation(policy: str, depth: int, length: int) -> dict[str, Any] | None:
    """The section of a target's config."""
    if policy == OFF:
        return None
    constant = {"depth": depth, "length": length} if policy == FIXED else {}
    return {"policy": policy, "deadline_ms": DEADLINE_MS, **constant}


def config_of(policy: str, args: Namespace) -> AppConfig:
    placed = {"page_size": PAGE_SIZE, "dtype": "bf16", "threads": 1}
    memory = {"kv_mb": args.kv_mb, "max_batch": max(MAX_BATCH, *args.load)}
    target: dict[str, Any] = {"path": str(args.target.resolve()), "weights": args.weights, **memory, **placed}
    target |= {"speculation": speculation(policy, args.depth, args.length)}
    pool: dict[str, Any] = {"path": str(args.drafter.resolve()), "kv_mb": 2 * args.kv_mb, "num_replicas": 1, **placed}
    if args.apart:
        target, pool = target | {"cores": [0]}, pool | {"cores": [1]}
    targets = [target | {"name": name} for name in names(args)]
    return AppConfig.model_validate({"targets": targets, "pool": pool, "http": {"port": free_port()}})


def tokens_within(answers: Sequence[ServedAnswer], began_s: float, end_s: float) -> float:
    """Each answer's tokens spread evenly from when it was asked for to its end."""
    return sum(
        one.num_tokens * max(0.0, min(one.end_s, end_s) - max(one.sent_s, began_s)) / (one.end_s - one.sent_s)
        for one in answers
    )


def numbers(targets: Sequence[str], own: int, num_prompts: int, until_s: float) -> Iterator[tuple[str, int]]:
    """What is asked of the own-th target as long as there is time; each begins elsewhere among the prompts."""
    first = own * num_prompts // len(targets)
    for number in itertools.cycle([*range(first, num_prompts), *range(first)]):
        if time.perf_counter() >= until_s:
            return
        yield targets[own], number


async def counts(client: LoadClient) -> dict[str, int]:
    """Of all targets, as the engines count them."""
    told = (await client.http.get("/debug/stats")).json()["targets"]
    return {
        name: sum(replica[key] for replicas in told.values() for replica in replicas) for name, key in COUNTS.items()
    }


async def step(url: str, cell: LoadCell, prompts: Sequence[Sequence[int]], args: Namespace) -> None:
    """One load; what came of it is added to the cell."""
    ask, targets = RequestTemplate(prompts, args.max_tokens, stream=False), names(args)
    async with LoadClient(url, cell.load * len(targets)) as client:
        before, began_s = await counts(client), time.perf_counter() + args.warm_s
        end_s = began_s + args.measure_s
        async with asyncio.TaskGroup() as tasks:
            loops = [
                tasks.create_task(client.closed_loop(ask, numbers(targets, own, len(prompts), end_s), cell.load))
                for own in range(len(targets))
            ]
        after = await counts(client)
    rates = (tokens_within(loop.result(), began_s, end_s) / args.measure_s for loop in loops)
    cell.rates.append(tuple(round(rate, 1) for rate in rates))
    cell.counts = {key: cell.counts.get(key, 0) + after[key] - before[key] for key in after}


def run(args: Namespace) -> int:
    if len(args.policies) < 2:
        raise ConfigError("one policy alone has nothing to stand beside; give --policies two or more")
    torch.set_num_threads(1)
    texts = read_texts(args.prompts, AutoTokenizer.from_pretrained(args.target))
    evenly = texts[:: max(1, len(texts) // args.num_prompts)][: args.num_prompts]
    prompts = [text.token_ids[:LONGEST] for text in evenly]
    place = machine.describe()
    cells = {(policy, load): LoadCell(name_of(policy, args), load) for policy in args.policies for load in args.load}
    for number in range(args.repeat):
        first = number % len(args.policies)
        for policy in args.policies[first:] + args.policies[:first]:
            with stopped_by_sigterm(), running(config_of(policy, args)) as url:
                for load in args.load:
                    asyncio.run(step(url, cells[policy, load], prompts, args))
                    sys.stderr.write(f"{number + 1}: {policy}, load {load}: {cells[policy, load].totals[-1]:.0f}\n")
        save(list(cells.values()), place, args)
    sys.stdout.write(table(list(cells.values()), note(args), place))
    return 0 if all_met(list(cells.values())) else 1


def name_of(policy: str, args: Namespace) -> str:
    return f"{CONSTANT}{args.depth}/{args.length}" if policy == FIXED else policy


def save(cells: Sequence[LoadCell], place: dict[str, object], args: Namespace) -> None:
    settings = (
        *("load", "repeat", "warm_s", "measure_s", "max_tokens", "depth", "length", "num_targets", "apart"),
        *("num_prompts", "kv_mb", "weights"),
    )
    report = {"machine": place, "settings": given(args, *settings), "cells": as_json(cells)}
    machine.save(args.out, report, table(cells, note(args), place))


def note(args: Namespace) -> str:
    return APART if args.apart else SHARED


def parse(arguments: Sequence[str] | None = None) -> Namespace:
    parser = loads_parser(__doc__, "router.served.json")
    add_weights(parser)
    add = parser.add_argument
    add("--num-targets", type=whole(1), default=4, help="of the same checkpoint (default: %(default)s)")
    add("--apart", action="store_true", help="the targets on core 0, the pool on core 1")
    add("--kv-mb", type=whole(1), default=64, help="of each target; the pool has twice as much (default: %(default)s)")
    add("--prompts", type=Path, default=HELD_OUT, help="default: held-out code")
    add("--num-prompts", type=whole(1), default=80, help="evenly of all (default: %(default)s)")
    add("--depth", type=whole(1), default=2, help="of the constant (default: 2)")
    add("--length", type=whole(1), default=4, help="of the constant (default: 4)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(ended("bench.router.served", run, parse()))
