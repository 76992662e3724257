"""`draftpool simulate`: how many draft replicas these targets want at this load, from what passes cost here."""

from __future__ import annotations

import argparse
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from cli.acceptance_file import acceptance_of, one_rate, read_acceptance
from cli.arguments import whole
from cli.plan_command import kept, rates
from cli.simulate_tables import Capacity, draw, shown
from deployments.config import AppConfig, PoolConfig, TargetConfig, load_config
from deployments.config_speculation import AdaptiveSpeculation, Mirror
from deployments.policies import adaptive, policy
from drafters.limits import PoolLimits
from drafters.manifest import Manifest
from link.links import TransportConfig
from model.files import resolve
from protocol.errors import ConfigError
from protocol.plan import Mode
from router.costs import CostCurves
from router.policy import Policy
from simulation.models import Memory
from simulation.simulate import Circumstances, PoolSpec, TargetSpec, simulate
from simulation.target import Arrival
from simulation.text import Drawn
from targets.ahead import AheadConfig
from targets.scheduler import SchedulerConfig

ALL = "all"
PAGE = 16
SPARE = 256  # positions of a sequence beyond its text: what is drafted and refused
PATIENT_S = 3600.0


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
        type=modes,
        metavar="MODE|NAME:MODE,...",
        help=f"how rounds get their proposals, of each target or of those named: {', '.join(Mode)} "
        "(default: as configured)",
    )
    parser.add_argument(
        "--corrects",
        type=shares_of,
        default="0.5,0.3,0.1",
        metavar="SHARE,SHARE,SHARE",
        help="of the drafter's mistakes, what its second choice corrects; of all tokens what the target's early pick "
        "gets right; of the others what that's second choice does (default: %(default)s)",
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


def modes(text: str) -> Mapping[str, Mode]:
    """By target; ALL stands for every one."""
    pairs = [part.rpartition(":") for part in text.split(",")]
    if unknown := sorted({mode for _, _, mode in pairs} - set(Mode)):
        raise ArgumentTypeError(f"{unknown[0]!r} is no mode; there are {', '.join(Mode)}")
    found = {name if colon else ALL: Mode(mode) for name, colon, mode in pairs}
    if len(found) < len(pairs) or (ALL in found and len(found) > 1):
        raise ArgumentTypeError(f"{text!r} is neither one mode nor NAME:MODE,... with every name once")
    return found


def shares_of(text: str) -> tuple[float, ...]:
    try:
        found = tuple(map(float, text.split(",")))
    except ValueError:
        found = (-1.0,)
    if len(found) != 3 or not all(0 <= share <= 1 for share in found):
        raise ArgumentTypeError(f"{text!r} is not three shares between 0 and 1, as 0.5,0.3,0.1")
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
    around = Circumstances(args.seed, args.noise, second=args.corrects[0], early=args.corrects[1:3])
    reports = {
        count: Capacity.of(simulate(targets, pool_of(targets, config.pool, count) if count else None, around))
        for count in counts
    }
    console = Console(highlight=False)
    for part in shown(reports):
        console.print(part, soft_wrap=isinstance(part, str))
    if args.plot:
        draw(reports, args.plot)
    return 0


def targets_of(args: argparse.Namespace, config: AppConfig, pool: PoolConfig) -> list[TargetSpec]:
    """One for each replica. Raises ConfigError for what is not measured, not told of, or not in the config."""
    names = [target.name for target in config.targets]
    for option, named in (("--rate", args.rate), ("--mode", args.mode or {})):
        if unknown := sorted(set(named) - {ALL, *names}):
            raise ConfigError(f"{option} names {unknown[0]!r}; the targets are {', '.join(names)}")
    known, exits = acceptance(args.acceptance), manifest_exits(pool)
    made: list[TargetSpec] = []
    for target in config.targets:
        one = specified(args, target, pool, acceptance_of(known, target.name, exits))
        rate = args.rate.get(target.name, args.rate.get(ALL, 0.0)) / target.num_replicas
        for number in range(target.num_replicas):
            name = target.name if target.num_replicas == 1 else f"{target.name} {number + 1}"
            rng = np.random.default_rng([args.seed, len(made)])
            load = poisson(rate, args.seconds, args.prompt_tokens, args.max_tokens, rng) if rate else []
            made.append(replace(one, name=name, arrivals=load))
    if not any(target.arrivals for target in made):
        raise ConfigError(f"nothing arrives within {args.seconds} s; raise --rate or --seconds")
    return made


def acceptance(text: str) -> Mapping[str, Drawn]:
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


def specified(args: argparse.Namespace, target: TargetConfig, pool: PoolConfig, known: Drawn) -> TargetSpec:
    """One replica, without requests."""
    curves = kept(args.config, target, pool)
    asked = args.mode or {}
    mode = asked.get(target.name, asked.get(ALL))
    if mode is not None and target.speculation is None and target.name in asked:
        raise ConfigError(f"--mode: target {target.name} does not speculate, so it has no mode; leave it out")
    target = asked_for(target, mode)
    deadline_s = 1e-3 * target.speculation.deadline_ms if target.speculation else PATIENT_S
    config = SchedulerConfig(target.max_batch, target.prefill_chunk)
    length = max(args.prompt_tokens) + max(args.max_tokens) + SPARE
    return TargetSpec(
        target.name,
        curves,
        partial(policy_of, target, curves, known.exits),
        known,
        arrivals=(),
        config=config,
        ahead=ahead_of(target),
        transport=TransportConfig(deadline_s),
        memory=Memory(target.max_batch * (length // PAGE + 1), PAGE, length),
    )


def asked_for(target: TargetConfig, mode: Mode | None) -> TargetConfig:
    """The target as the options want it. mode: None: as it is."""
    if target.speculation is None or mode is None:
        return target
    mirror = (target.speculation.mirror or Mirror()).model_copy(update={"modes": (mode,)})
    changed = target.speculation.model_copy(update={"mirror": None if mode is Mode.SERIAL else mirror})
    return target.model_copy(update={"speculation": changed})


def ahead_of(target: TargetConfig) -> AheadConfig | None:
    mirror = target.speculation.mirror if target.speculation else None
    return AheadConfig(mirror.modes, mirror.fan_out, mirror.exit_layer) if mirror else None


def pool_of(targets: Sequence[TargetSpec], pool: PoolConfig, num_replicas: int) -> PoolSpec:
    """With room for every sequence of every target."""
    num_rows = sum(target.config.max_batch for target in targets)
    num_pages = 2 * sum(target.memory.num_pages for target in targets)
    memory = Memory(num_pages, PAGE, max(target.memory.max_positions for target in targets))
    return PoolSpec(num_replicas, PoolLimits(max_rows=num_rows, prefill_tokens=pool.prefill_chunk), memory)


def poisson(
    rate: float, seconds: float, prompt_tokens: Sequence[int], max_tokens: Sequence[int], rng: np.random.Generator
) -> list[Arrival]:
    """Arrivals at `rate` a second, for so long; lengths are drawn from those given, each as likely."""
    size = int(rng.poisson(rate * seconds))
    at = np.sort(rng.uniform(0.0, seconds, size))
    prompts, outputs = rng.choice(prompt_tokens, size), rng.choice(max_tokens, size)
    return [Arrival(*row) for row in zip(at.tolist(), prompts.tolist(), outputs.tolist(), strict=True)]


def policy_of(target: TargetConfig, curves: CostCurves, exits: tuple[int, ...]) -> Policy:
    """A new one, as a replica of the target has it."""
    settings = target.speculation
    if isinstance(settings, AdaptiveSpeculation):
        return adaptive(settings, curves, exits, target.max_batch)
    return policy(settings)
