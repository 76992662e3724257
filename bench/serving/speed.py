"""What serving costs: tokens per second over HTTP against the engine alone, speculation off, as ratios.

The application (one target, no pool) and an engine alone are up side by side, each with the same threads on the same
cores; everything else (ingress, proxy, Ray, the client) is kept to the other cores, where there are any. Only one of
the two works at a time, in turn with the other, beginning with another one in each repetition. The same prompts at the
same concurrency, greedy, EOS ignored; tokens over the time from the first request to the last token.
"""

from __future__ import annotations

import asyncio
import os
from argparse import Namespace
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from statistics import mean, median
from types import MappingProxyType

from tqdm import tqdm

from bench import machine
from bench.client import LoadClient, RequestTemplate
from bench.serving.offline import Timing, engine_alone
from bench.stats import Bar, paired_ratio
from deployments.cluster import running
from deployments.config import AppConfig, HttpConfig, TargetConfig
from link.listening import free_port
from protocol.errors import ConfigError

OFFLINE = "offline"
BARS = MappingProxyType({"whole": 0.85, "streamed": 0.70})

Measure = Callable[[], Awaitable[Timing]]


@dataclass(frozen=True, slots=True)
class ServedRates:
    """Tokens per second by repetition. identical: the share of texts that are the offline engine's."""

    mode: str
    rates: list[float]
    offline: list[float]
    identical: float

    @property
    def bar(self) -> Bar:
        name = f"{self.mode} answers over HTTP, over the engine alone"
        return Bar(name, "at least", BARS[self.mode], paired_ratio(self.rates, self.offline))


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


def leave(cores: Sequence[int]) -> None:
    """Binds this process, and what it will start, to the other cores, if there are any."""
    if others := os.sched_getaffinity(0) - set(cores):
        os.sched_setaffinity(0, others)


def over_http(client: LoadClient, ask: RequestTemplate, model: str, concurrency: int) -> Measure:
    async def timed() -> Timing:
        requests = [(model, number) for number in range(len(ask.prompts))]
        answers = await client.closed_loop(ask, requests, concurrency)
        seconds = max(answer.end_s for answer in answers) - min(answer.sent_s for answer in answers)
        return Timing(sum(answer.num_tokens for answer in answers), seconds, [answer.text for answer in answers])

    return timed


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


async def measure(url: str, target: TargetConfig, prompts: Sequence[str], args: Namespace) -> list[ServedRates]:
    async with AsyncExitStack() as stack:
        run_alone = stack.enter_context(engine_alone(target, prompts, args.max_tokens))
        client = await stack.enter_async_context(LoadClient(url, args.concurrency))
        modes: dict[str, Measure] = {OFFLINE: lambda: asyncio.to_thread(run_alone)}
        for mode in BARS:
            ask = RequestTemplate(prompts, args.max_tokens, stream=mode == "streamed")
            modes[mode] = over_http(client, ask, target.name, args.concurrency)
        timings = await in_turn(modes, args.pairs)
    return [served(mode, timings[mode], timings[OFFLINE]) for mode in BARS]


def served(mode: str, timings: Sequence[Timing], offline: Sequence[Timing]) -> ServedRates:
    rates, base = ([round(t.tokens_per_second, 1) for t in each] for each in (timings, offline))
    same = [a == b for t, o in zip(timings, offline, strict=True) for a, b in zip(t.texts, o.texts, strict=True)]
    return ServedRates(mode, rates, base, round(mean(same), 3))


def measure_speed(config: AppConfig, prompts: Sequence[str], args: Namespace) -> list[ServedRates]:
    name = args.target or config.targets[0].name
    config = plain_config(config, name, concurrency=args.concurrency, threads=args.threads, cores=args.cores)
    before = os.sched_getaffinity(0)
    leave(args.cores)
    try:
        with running(config) as url:
            return asyncio.run(measure(url, config.targets[0], prompts[: args.num_prompts], args))
    finally:
        os.sched_setaffinity(0, before)


def speed_table(rows: Sequence[ServedRates]) -> str:
    header = ("answers", "tokens/s", "engine alone", "ratio", "90 % interval", "asked", "met", "same text")
    return machine.markdown(header, map(_row, rows))


def _row(row: ServedRates) -> list[object]:
    bar, ratio = row.bar, row.bar.ratio
    figures = [f"{median(row.rates):.1f}", f"{median(row.offline):.1f}", f"{ratio.median:.3f}"]
    met = "yes" if bar.met else "**no**"
    return [row.mode, *figures, ratio.interval(".3f"), bar.asked, met, f"{row.identical:.1%}"]
