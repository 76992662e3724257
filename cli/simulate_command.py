"""`draftpool simulate`: how many draft replicas these targets want at this load, from what passes cost here."""

from __future__ import annotations

import argparse
import math
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from cli import overlaps
from cli.acceptance_file import one_rate, profile_of, read_acceptance
from cli.arguments import whole
from cli.plan_command import choices_of, kept, rates
from cli.plot import MARKS, plot
from deployments.config import AppConfig, PoolConfig, TargetConfig, load_config
from deployments.config_speculation import GoodputSpeculation
from deployments.policies import policy
from drafters.manifest import Manifest
from model.files import resolve
from protocol.errors import ConfigError
from router.costs import CostCurves
from router.explain import rule_name
from router.goodput import Goodput
from router.policy import Policy
from router.simulate import Report, SimulatedPool, SimulatedTarget, TargetReport, poisson, simulate
from router.simulate_acceptance import Profile
from router.simulate_pool import PoolRules

ALL = "all"
NUM_SHARES = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML file, profiled or served before")
    parser.add_argument(
        "--acceptance",
        required=True,
        metavar="FILE|DEPTH:RATE,...",
        help="how often drafts are accepted: a JSON file (docs/simulate.md), or one rate for each exit of the drafter",
    )
    parser.add_argument(
        "--rate",
        type=arrival_rates,
        default="1",
        metavar="RATE|NAME:RATE,...",
        help="requests a second to each target, or to those named (default: %(default)s)",
    )
    parser.add_argument("--seconds", type=whole(1), default=30, help="that requests arrive for (default: %(default)s)")
    parser.add_argument("--prompt-tokens", type=wholes(1), default="128", help="to draw from (default: %(default)s)")
    parser.add_argument("--max-tokens", type=wholes(1), default="64", help="to draw from (default: %(default)s)")
    parser.add_argument(
        "--replicas", type=wholes(0), metavar="N,...", help="of the pool, 0 for no pool (default: as configured)"
    )
    parser.add_argument(
        "--mode",
        type=overlaps.modes,
        metavar="MODE|NAME:MODE,...",
        help=f"how drafting and verifying overlap, of each target or of those named: {', '.join(overlaps.MODES)} "
        "(default: as configured)",
    )
    parser.add_argument(
        "--corrects",
        type=overlaps.choices,
        default="0.5,0.3,0.1",
        metavar="SHARE,...",
        help="of the drafter's mistakes, what its second choice corrects; of the others the target's first early pick, "
        "its second, ... (default: %(default)s)",
    )
    parser.add_argument("--noise", type=positive, default=0.0, help="of a pass's time, relative (default: none)")
    parser.add_argument("--seed", type=whole(0), default=0, help="of arrivals, texts and noise (default: %(default)s)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw tokens per second and TPOT, with matplotlib")


def wholes(low: int) -> Callable[[str], tuple[int, ...]]:
    """One or more whole numbers from low on."""
    return lambda text: tuple(map(whole(low), text.split(",")))


def positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return number


def arrival_rates(text: str) -> Mapping[str, float]:
    """By target; ALL stands for every one."""
    pairs = [part.rpartition(":") for part in text.split(",")]
    found = {name if colon else ALL: positive(rate) for name, colon, rate in pairs}
    if len(found) < len(pairs) or (ALL in found and len(found) > 1):
        raise ArgumentTypeError(f"{text!r} is neither one rate nor NAME:RATE,... with every name once")
    return found


def run(args: argparse.Namespace) -> int:
    config = load_config(args.config)
    if config.pool is None:
        raise ConfigError("there is no pool to size; add one")
    if config.placement == "colocated":
        raise ConfigError("with placement: colocated there is no pool to size; see draftpool plan")
    if args.plot and not args.plot.parent.is_dir():
        raise ConfigError(f"--plot {args.plot}: there is no folder {args.plot.parent}; make it, or name another")
    targets = targets_of(args, config, config.pool)
    counts = args.replicas or (config.pool.num_replicas,)
    rules = PoolRules(prefill_tokens=config.pool.prefill_chunk)
    reports = {
        count: simulate(targets, SimulatedPool(count, rules) if count else None, args.seed, args.noise)
        for count in counts
    }
    console = Console(highlight=False)
    for part in shown(reports):
        console.print(part, soft_wrap=isinstance(part, str))
    if args.plot:
        draw(reports, args.plot)
    return 0


def targets_of(args: argparse.Namespace, config: AppConfig, pool: PoolConfig) -> list[SimulatedTarget]:
    """One for each replica. Raises ConfigError for what is not measured, not told of, or not in the config."""
    names = [target.name for target in config.targets]
    if unknown := sorted(set(args.rate) - {ALL, *names}):
        raise ConfigError(f"--rate names {unknown[0]!r}; the targets are {', '.join(names)}")
    overlaps.check(args.mode, names)
    profiles, exits = acceptance(args.acceptance), manifest_exits(pool)
    made: list[SimulatedTarget] = []
    for target in config.targets:
        one = simulated(target, pool, kept(args.config, target, pool), profile_of(profiles, target.name, exits))
        rate = args.rate.get(target.name, args.rate.get(ALL, 0.0)) / target.num_replicas
        for number in range(target.num_replicas):
            name = target.name if target.num_replicas == 1 else f"{target.name} {number + 1}"
            rng = np.random.default_rng([args.seed, len(made)])
            load = poisson(rate, args.seconds, args.prompt_tokens, args.max_tokens, rng) if rate else []
            overlap = overlaps.overlap_of(target, args.mode, args.corrects)
            made.append(replace(one, name=name, requests=load, overlap=overlap))
    if not any(target.requests for target in made):
        raise ConfigError(f"nothing arrives within {args.seconds} s; raise --rate or --seconds")
    return made


def acceptance(text: str) -> Mapping[str, Profile]:
    """A file if it is one. Raises ConfigError."""
    if Path(text).exists() or Path(text).suffix == ".json":
        return read_acceptance(Path(text))
    try:
        return one_rate(rates(text))
    except ArgumentTypeError as error:
        raise ConfigError(f"--acceptance: {error}; or name a file") from None


def manifest_exits(pool: PoolConfig) -> tuple[int, ...]:
    """Raises ConfigError for a damaged manifest."""
    try:
        return Manifest.load(resolve(pool.path)).exits
    except ValueError as error:
        raise ConfigError(str(error)) from None


def simulated(target: TargetConfig, pool: PoolConfig, curves: CostCurves, profile: Profile) -> SimulatedTarget:
    """One replica, without requests."""
    speculation = target.speculation
    return SimulatedTarget(
        name=target.name,
        curves=curves,
        policy=partial(policy_of, target, pool, curves),
        profile=profile,
        requests=(),
        max_batch=target.max_batch,
        prefill_chunk=target.prefill_chunk,
        deadline_ms=speculation.deadline_ms if speculation else math.inf,
    )


def policy_of(target: TargetConfig, pool: PoolConfig, curves: CostCurves) -> Policy:
    """A new one, as a replica of the target has it."""
    settings = target.speculation
    if isinstance(settings, GoodputSpeculation):
        return Goodput(curves, choices_of(target, settings, pool, target.max_batch))
    return policy(settings)


def shown(reports: Mapping[int, Report]) -> Iterator[str | Table]:
    yield table(reports)
    for count, report in reports.items():
        if count:
            yield from (f"{target.name}, {replicas(count)}: {shares(target)}" for target in report.targets)
    pools = {count: report for count, report in reports.items() if count}
    curves = series(pools, rate)
    if len(pools) > 1 and len(curves) <= len(MARKS):
        yield plot("tokens per second", curves, "draft replicas")


def replicas(count: int) -> str:
    return "1 replica" if count == 1 else f"{count} replicas"


def table(reports: Mapping[int, Report]) -> Table:
    times = ("TTFT ms p50", "p99", "TPOT ms p50", "p99")
    heads = ("target", "tokens/s", *times, "tokens/round", "wait ms", "exposed ms", "late", "hits")
    made = Table("replicas", "pool busy", *heads, title="simulated")
    for count, report in reports.items():
        busy = [replica.utilisation for replica in report.replicas]
        made.add_row(str(count), f"{sum(busy) / len(busy):.0%}" if busy else "", ALL, f"{report.tokens_per_second:.1f}")
        for target in report.targets:
            made.add_row("", "", *cells(target))
    return made


def cells(target: TargetReport) -> Iterator[str]:
    tpot, length = target.tpot_ms, target.mean_acceptance_length
    yield from (target.name, f"{target.tokens_per_second:.1f}")
    yield from (f"{ms:.2f}" for ms in (target.ttft_ms.p50, target.ttft_ms.p99))
    yield from (f"{tpot.p50:.3f}", f"{tpot.p99:.3f}") if tpot else ("", "")
    yield "" if length is None else f"{length:.2f}"
    yield from (f"{target.wait_ms:.2f}", f"{target.exposed_ms:.2f}", f"{target.missed:.1%}")
    yield f"{sum(target.hits.values()):.0%}" if target.hits else ""


def shares(target: TargetReport) -> str:
    """What its rows drafted most often."""
    most = list(target.drafted.items())[:NUM_SHARES]
    return ", ".join(
        f"{share:.0%} {f'{length} tokens at {rule_name(rule)}' if rule else 'plain'}" for (rule, length), share in most
    )


def series(
    reports: Mapping[int, Report], value: Callable[[TargetReport], float]
) -> dict[str, list[tuple[float, float]]]:
    """Of each target that was asked anything, the value by number of replicas."""
    found: dict[str, list[tuple[float, float]]] = {}
    for count, report in reports.items():
        for target in report.targets:
            if target.served:
                found.setdefault(target.name, []).append((count, value(target)))
    return found


def draw(reports: Mapping[int, Report], path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        sys.stderr.write("draftpool: the plot is left out, it needs matplotlib; install with '.[bench]'\n")
        return
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, name, value in zip(panels, ("tokens per second", "TPOT, ms (median)"), (rate, tpot), strict=True):
        for target, points in series(reports, value).items():
            axes.plot(*zip(*points, strict=True), marker="o", label=target)
        axes.set(xlabel="draft replicas", ylabel=name, ylim=(0, None))
        axes.legend()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plot {path}: {error}") from None


def rate(target: TargetReport) -> float:
    return target.tokens_per_second


def tpot(target: TargetReport) -> float:
    return target.tpot_ms.p50 if target.tpot_ms else 0.0
