"""`draftpool simulate`: how many draft replicas these targets want at this load, from what passes cost here."""

from __future__ import annotations

import argparse
from argparse import ArgumentTypeError
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from cli.acceptance_file import acceptance_of, one_rate, read_acceptance
from cli.arguments import ALL, by_name, check_folder, one_of, rates, real, several, whole
from cli.output import listed, say
from cli.plan_command import kept
from cli.simulate_report import draw, report
from deployments.config import AppConfig, PoolConfig, TargetConfig, load_config
from deployments.config_errors import explain
from deployments.config_speculation import AdaptiveSpeculation
from deployments.models import translation_to
from deployments.policies import adaptive, drafts_ahead, policy
from drafters.limits import PoolLimits
from drafters.manifest import Manifest
from link.links import TransportConfig
from model.files import resolve
from protocol.errors import ConfigError
from router.costs import CostCurves
from router.policy import Policy
from simulation.models import Memory
from simulation.simulate import Circumstances, PoolSpec, TargetSpec, simulate
from simulation.target import Arrival
from simulation.text import Drawn
from targets.scheduler import SchedulerConfig

PAGE = 16
SPARE = 256  # positions of a sequence beyond its text: what is drafted and refused
PATIENT_S = 3600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("config", type=Path, metavar="CONFIG", help="YAML file, profiled or served before")
    add(
        "--acceptance",
        required=True,
        metavar="FILE|DEPTH:RATE,...",
        help="how often drafts are accepted: a JSON file (docs/simulate.md), or one rate for each exit of the drafter",
    )
    add(
        "--rate",
        type=by_name(real(0)),
        default="1",
        metavar="RATE|NAME:RATE,...",
        help="requests a second to each target, or to those named (default: %(default)s)",
    )
    add("--seconds", type=whole(1), default=30, help="that requests arrive for (default: %(default)s)")
    add("--prompt-tokens", type=several(whole(1)), default="128", help="to draw from (default: %(default)s)")
    add("--max-tokens", type=several(whole(1)), default="64", help="to draw from (default: %(default)s)")
    add("--replicas", type=several(whole(0)), metavar="N,...", help="of the pool, 0 is none (default: as configured)")
    add(
        "--ahead",
        type=by_name(one_of("on", "off")),
        default={},
        metavar="ON|NAME:ON,...",
        help="whether drafts come ahead, for each target or those named: on or off (default: as configured)",
    )
    add("--noise", type=real(0), default=0.0, help="of a pass's time, relative (default: none)")
    add("--seed", type=whole(0), default=0, help="of arrivals, texts and noise (default: %(default)s)")
    add("--plot", type=Path, metavar="FILE", help="draw tokens per second and TPOT, with matplotlib")


def run(args: argparse.Namespace) -> int:
    config = load_config(args.config)
    if config.pool is None:
        raise ConfigError("there is no pool to size; add one")
    if config.placement == "colocated":
        raise ConfigError("with placement: colocated there is no pool to size; see draftpool plan")
    check_folder("--plot", args.plot)
    targets = target_specs(args, config, config.pool)
    counts = args.replicas or (config.pool.num_replicas,)
    around = Circumstances(args.seed, args.noise)
    outcomes = {
        count: simulate(targets, pool_spec(targets, config.pool, count) if count else None, around) for count in counts
    }
    say(*report(outcomes))
    if args.plot:
        draw(outcomes, args.plot)
    return 0


def target_specs(args: argparse.Namespace, config: AppConfig, pool: PoolConfig) -> list[TargetSpec]:
    """One for each replica. Raises ConfigError for targets without costs or acceptance, or not in the config."""
    names = [target.name for target in config.targets]
    for option, values in (("--rate", args.rate), ("--ahead", args.ahead)):
        if unknown := sorted(set(values) - {ALL, *names}):
            raise ConfigError(f"{option} names {unknown[0]!r}; the targets are {listed(names)}")
    acceptance, exits = read_rates(args.acceptance), Manifest.load(resolve(pool.path)).exits
    specs: list[TargetSpec] = []
    for target in config.targets:
        curves = kept(args.config, config, target, pool)
        translates = translation_to(pool, target) is not None
        spec = target_spec(args, target, curves, acceptance_of(acceptance, target.name, exits), translates)
        rate = args.rate.get(target.name, args.rate.get(ALL, 0.0)) / target.num_replicas
        for number in range(target.num_replicas):
            name = target.name if target.num_replicas == 1 else f"{target.name} {number + 1}"
            rng = np.random.default_rng([args.seed, len(specs)])
            arrivals = poisson(rate, args.seconds, args.prompt_tokens, args.max_tokens, rng) if rate else []
            specs.append(replace(spec, name=name, arrivals=arrivals))
    if not any(spec.arrivals for spec in specs):
        raise ConfigError(f"nothing arrives within {args.seconds} s; raise --rate or --seconds")
    return specs


def read_rates(text: str) -> Mapping[str, Drawn]:
    """The value of --acceptance: a file if it is one. Raises ConfigError."""
    if Path(text).exists() or Path(text).suffix == ".json":
        return read_acceptance(Path(text))
    try:
        return one_rate(rates(text))
    except ArgumentTypeError as error:
        raise ConfigError(f"--acceptance: {error}; or name a file") from None


def target_spec(
    args: argparse.Namespace, target: TargetConfig, curves: CostCurves, acceptance: Drawn, translates: bool
) -> TargetSpec:
    """One replica, without requests."""
    if target.speculation is None and target.name in args.ahead:
        raise ConfigError(f"--ahead: target {target.name} does not speculate; leave it out")
    target = with_ahead(target, args.ahead.get(target.name, args.ahead.get(ALL)))
    deadline_s = 1e-3 * target.speculation.deadline_ms if target.speculation else PATIENT_S
    length = max(args.prompt_tokens) + max(args.max_tokens) + SPARE
    return TargetSpec(
        target.name,
        curves,
        partial(new_policy, target, curves, acceptance.exits),
        acceptance,
        arrivals=(),
        config=SchedulerConfig(target.max_batch, target.prefill_chunk),
        ahead=drafts_ahead(target, apart=True, translates=translates),
        transport=TransportConfig(deadline_s),
        memory=Memory(target.max_batch * (length // PAGE + 1), PAGE, length),
    )


def with_ahead(target: TargetConfig, ahead: str | None) -> TargetConfig:
    """The target with drafts ahead on or off; None: as configured. Raises ConfigError where a config may not say so."""
    if target.speculation is None or ahead is None:
        return target
    values = target.model_dump()
    values["speculation"]["ahead"] = ahead == "on"
    try:
        return TargetConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"--ahead {ahead} for target {target.name}: {explain(error, TargetConfig)}") from None


def pool_spec(targets: Sequence[TargetSpec], pool: PoolConfig, num_replicas: int) -> PoolSpec:
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


def new_policy(target: TargetConfig, curves: CostCurves, exits: tuple[int, ...]) -> Policy:
    """As a replica of the target has it."""
    if isinstance(target.speculation, AdaptiveSpeculation):
        return adaptive(target.speculation, curves, exits, target.max_batch)
    return policy(target.speculation)
