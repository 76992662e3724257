"""What serving costs: tokens per second over HTTP against the engine alone, speculation off, as ratios.

The application (one target, no pool) and an offline engine are up side by side, each with the same threads on the
same cores; everything else (ingress, proxy, Ray, the client) is kept to the other cores, where there are any. Only
one of the two works at a time. Each repetition runs the offline engine, whole answers and streams, beginning with
another one each time; ratios compare runs of one repetition. The same prompts, as text over HTTP, at the same
concurrency; tokens over the time from the first request to the last token, prefill included. Greedy, EOS ignored.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from types import MappingProxyType

from tqdm import tqdm

from bench import machine
from bench.arrivals import closed_loop
from bench.load_client import Ask, Client, drive
from bench.offline import OfflineEngine, Timing
from bench.prompts import HELD_OUT
from bench.stats import Bar, paired_ratio
from cli.arguments import whole
from cli.demo_command import CONFIG
from cli.prompts import read_prompts
from deployments.cluster import running
from deployments.config import AppConfig, HttpConfig, TargetConfig, load_config
from link.listening import free_port
from protocol.errors import ConfigError, DraftPoolError

RESULT = machine.ROOT / "bench/results/served.json"
OFFLINE = "offline"
BARS = MappingProxyType({"whole": 0.85, "streamed": 0.70})
TIMEOUT_S = 120.0

Measure = Callable[[], Awaitable[Timing]]


@dataclass(frozen=True, slots=True)
class Row:
    """identical: the share of texts that are the offline engine's; bf16 may round differently from batch to batch."""

    mode: str
    bar: dict[str, object]
    ratios: list[float]
    tokens_per_second: list[float]
    offline_tokens_per_second: list[float]
    identical: float


def plain_config(config: AppConfig, name: str, *, concurrency: int, threads: int, cores: Sequence[int]) -> AppConfig:
    """One target of the config, without speculation and pool. Raises ConfigError when it has no such target."""
    chosen = [target for target in config.targets if target.name == name]
    if not chosen:
        names = ", ".join(target.name for target in config.targets)
        raise ConfigError(f"--target {name!r} is not in the config; it has {names}")
    changes = {"speculation": None, "max_batch": concurrency, "num_replicas": 1}
    target = chosen[0].model_copy(update={**changes, "threads": threads, "cores": tuple(cores)})
    http = HttpConfig(port=free_port())
    return config.model_copy(update={"targets": (target,), "pool": None, "http": http, "grpc": None})


def leave(cores: Sequence[int]) -> list[int]:
    """Binds this process, and what it will start, to the other cores, if there are any; returns where it is now."""
    others = os.sched_getaffinity(0) - set(cores)
    if others:
        os.sched_setaffinity(0, others)
    return sorted(os.sched_getaffinity(0))


async def served(client: Client, model: str, num_requests: int, concurrency: int) -> Timing:
    schedule = closed_loop({model: 1.0}, num_requests, num_requests=num_requests, seed=0)
    outcomes = await drive(schedule, client.send, concurrency)
    if failed := [outcome.error for outcome in outcomes if outcome.error is not None]:
        raise RuntimeError(f"{len(failed)} of {num_requests} served requests failed: {failed[0]}")
    seconds = max(outcome.end_s for outcome in outcomes)
    return Timing(sum(outcome.num_tokens for outcome in outcomes), seconds, [outcome.text for outcome in outcomes])


async def measure(url: str, target: TargetConfig, prompts: Sequence[str], args: argparse.Namespace) -> list[Row]:
    async with AsyncExitStack() as stack:
        offline = stack.enter_context(OfflineEngine(target, prompts, args.max_tokens))
        modes: dict[str, Measure] = {OFFLINE: lambda: asyncio.to_thread(offline.run)}
        for mode in BARS:
            ask = Ask(args.max_tokens, stream=mode == "streamed")
            client = Client(url, prompts, ask, connections=args.concurrency, timeout_s=TIMEOUT_S)
            await stack.enter_async_context(client)
            modes[mode] = over_http(client, target.name, len(prompts), args.concurrency)
        timings = await in_turn(modes, args.pairs)
    return [row(mode, timings[mode], timings[OFFLINE]) for mode in BARS]


def over_http(client: Client, model: str, num_requests: int, concurrency: int) -> Measure:
    return lambda: served(client, model, num_requests, concurrency)


async def in_turn(modes: Mapping[str, Measure], repeat: int) -> dict[str, list[Timing]]:
    """After one run of each that does not count: it warms up."""
    order = list(modes)
    timings: dict[str, list[Timing]] = {mode: [] for mode in order}
    for number in tqdm(range(-1, repeat), "repetitions"):
        first = number % len(order)
        for mode in order[first:] + order[:first]:
            timing = await modes[mode]()
            if number >= 0:
                timings[mode].append(timing)
    return timings


def row(mode: str, timings: Sequence[Timing], offline: Sequence[Timing]) -> Row:
    ours, theirs = ([round(t.tokens_per_second, 1) for t in each] for each in (timings, offline))
    bar = Bar(f"served {mode} / offline", "at least", BARS[mode], paired_ratio(ours, theirs))
    same = [a == b for t, o in zip(timings, offline, strict=True) for a, b in zip(t.texts, o.texts, strict=True)]
    ratios = [round(a / b, 3) for a, b in zip(ours, theirs, strict=True)]
    return Row(mode, bar.as_json(), ratios, ours, theirs, round(mean(same), 3))


def table(rows: Sequence[Row]) -> str:
    lines = ["mode      served tok/s  offline tok/s  ratio  90 % interval   bar   met  same text"]
    for one in rows:
        ratio = paired_ratio(one.tokens_per_second, one.offline_tokens_per_second)
        ours, theirs = median(one.tokens_per_second), median(one.offline_tokens_per_second)
        lines.append(
            f"{one.mode:9} {ours:12.1f} {theirs:14.1f} {ratio.median:6.3f}  [{ratio.low:.3f}, {ratio.high:.3f}] "
            f"{BARS[one.mode]:5.2f}  {'yes' if one.bar['met'] else 'NO':4} {100 * one.identical:6.1f} %"
        )
    return "\n".join(lines) + "\n"


def run(args: argparse.Namespace) -> list[Row]:
    config = load_config(args.config)
    name = args.target or config.targets[0].name
    prompts = [prompt.text for prompt in read_prompts(args.prompts, 0)][: args.num_requests]
    cores = args.cores
    config = plain_config(config, name, concurrency=args.concurrency, threads=args.threads, cores=cores)
    others = leave(cores)
    with running(config) as url:
        rows = asyncio.run(measure(url, config.targets[0], prompts, args))
    where = {"target": name, "dtype": config.targets[0].dtype, "engine_cores": list(cores), "other_cores": others}
    settings = {"concurrency": args.concurrency, "num_requests": len(prompts), "max_tokens": args.max_tokens}
    facts = machine.describe() | {"threads": args.threads}
    report = {"machine": facts, **where, **settings, "pairs": args.pairs, "rows": [asdict(one) for one in rows]}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIG, help="default: the demo family")
    parser.add_argument("--target", help="its name in the config (default: the first)")
    parser.add_argument("--prompts", type=Path, default=HELD_OUT, help="default: held-out code")
    parser.add_argument("--concurrency", type=whole(1), default=8, help="default: %(default)s")
    parser.add_argument("--num-requests", type=whole(1), default=32, help="in one run (default: %(default)s)")
    parser.add_argument("--max-tokens", type=whole(1), default=64, help="default: %(default)s")
    parser.add_argument("--pairs", type=whole(1), default=15, help="repetitions (default: %(default)s)")
    parser.add_argument("--threads", type=whole(1), default=1, help="of either engine (default: %(default)s)")
    parser.add_argument("--cores", type=whole(0), nargs="+", default=[0], help="of either engine (default: 0)")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args(argv)
    try:
        rows = run(args)
    except DraftPoolError as error:
        sys.stderr.write(f"bench.served: {error}\n")
        return 2
    sys.stdout.write(table(rows))
    return 0 if all(one.bar["met"] for one in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
