"""`draftpool plan`: what the router would choose for a batch with the costs kept here, beside all it could.

And what target and drafter would bring if they were placed otherwise.
"""

from __future__ import annotations

import argparse
from argparse import ArgumentTypeError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from rich.console import Console
from rich.table import Table

from cli import placement_plan
from cli.arguments import whole
from cli.placement_plan import Row, rows_of
from deployments.config import AppConfig, PoolConfig, TargetConfig, load_config
from deployments.config_speculation import GoodputSpeculation
from deployments.placement import PLACES, as_placed, pool_of, without_link
from deployments.policies import goodput_config
from deployments.profile_store import find, model_key
from drafters.manifest import Manifest
from model.files import resolve
from protocol.errors import ConfigError
from router.acceptance import Acceptance
from router.costs import CostCurves, DrafterCosts, TargetCosts
from router.explain import Floats, Option, constant_hazards, options, rule_name
from router.goodput import GoodputConfig
from router.overlap import Overlap, overlaps
from router.predict import Predictor
from router.tables import tables


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML file, profiled or served before")
    parser.add_argument("--target", metavar="NAME", help="default: the first of the config")
    parser.add_argument("--batch", type=whole(1), default=1, help="sequences that decode (default: %(default)s)")
    parser.add_argument("--context", type=whole(1), default=256, help="tokens of each so far (default: %(default)s)")
    parser.add_argument("--remaining", type=whole(1), default=128, help="tokens to come (default: %(default)s)")
    parser.add_argument(
        "--acceptance",
        type=rates,
        metavar="DEPTH:RATE,...",
        help="that a token is accepted when all before it were (default: what the router expects before it knows)",
    )


def rates(text: str) -> Mapping[int, float]:
    try:
        pairs = [pair.split(":") for pair in text.split(",")]
        found = {int(depth): float(rate) for depth, rate in pairs}
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not DEPTH:RATE,..., such as 2:0.6,4:0.7") from None
    if wrong := [rate for rate in found.values() if not 0 <= rate <= 1]:
        raise ArgumentTypeError(f"{wrong[0]} is no share; give one from 0 to 1 for each depth")
    return MappingProxyType(found)


def run(args: argparse.Namespace) -> int:
    config = load_config(args.config)
    target, _ = chosen(config, args.target)
    found = planned(config, str(args.config), args)
    of_batch = f"{args.batch} rows at {args.context} tokens"
    console = Console(highlight=False)
    console.print(table(found.options, f"{target.name}: rounds of {of_batch}, in ms"))
    if not isinstance(target.speculation, GoodputSpeculation):
        console.print(f"target {target.name} does not choose itself: its policy is not goodput", soft_wrap=True)
    rows, notes = placements(config, args)
    console.print(placement_plan.table(rows, f"{target.name}: {of_batch}, by placement"))
    for note in notes:
        console.print(note, soft_wrap=True)
    return 0


@dataclass(frozen=True, slots=True)
class Planned:
    """What a target would do. overlaps: where it drafts ahead, all that it could."""

    options: Sequence[Option]
    overlaps: Sequence[Overlap]


def planned(config: AppConfig, where: str, args: argparse.Namespace) -> Planned:
    """where: the config, as the command that profiles names it. Raises ConfigError for what is not known."""
    target, pool = chosen(config, args.target)
    settings = target.speculation if isinstance(target.speculation, GoodputSpeculation) else GoodputSpeculation()
    choices = choices_of(target, settings, pool, max_rows=args.batch)
    curves = kept(where, target, pool)
    if config.placement == "colocated" and curves.drafter is not None:
        curves = replace(curves, drafter=without_link(curves.drafter))
    predictor = Predictor(tables(curves, choices.rules, choices.length, choices.max_rows), choices.linked)
    hazards, room = hazards_of(choices, args.acceptance), min(choices.length, args.remaining - 1)
    return Planned(
        options(predictor, hazards, args.batch, args.context, room),
        overlaps(predictor, hazards, args.batch, args.context, room),
    )


def placements(config: AppConfig, args: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """What either placement would bring, the config's own first, and why one is left out."""
    rows, notes = [], []
    for place in sorted(PLACES, key=lambda place: place != config.placement):
        where = str(args.config) if place == config.placement else f"{args.config} --placement {place}"
        try:
            placed = as_placed(config, place)
            found = planned(placed, where, args)
        except ConfigError as error:
            notes.append(f"{place} is left out: {error}")
            continue
        rows += rows_of(placed, chosen(placed, args.target)[0], found.options, found.overlaps)
    return rows, notes


def chosen(config: AppConfig, name: str | None) -> tuple[TargetConfig, PoolConfig]:
    """It, and the pool as it drafts for it. Raises ConfigError when the config has no such target, or no pool."""
    for target in config.targets:
        pool = pool_of(config, target)
        if pool is None:
            raise ConfigError("there is no pool to draft; add one")
        if name in (None, target.name):
            return target, pool
    names = ", ".join(target.name for target in config.targets)
    raise ConfigError(f"--target {name!r} is not in the config; it has {names}")


def choices_of(target: TargetConfig, settings: GoodputSpeculation, pool: PoolConfig, max_rows: int) -> GoodputConfig:
    """Raises ConfigError for a damaged manifest, or thresholds that do not fit its exits."""
    try:
        return goodput_config(settings, Manifest.load(resolve(pool.path)).exits, max_rows)
    except ValueError as error:
        raise ConfigError(f"speculation of target {target.name}: {error}") from None


def kept(config: Path | str, target: TargetConfig, pool: PoolConfig) -> CostCurves:
    """Raises ConfigError naming the command that measures what is not there."""
    costs = find(TargetCosts, model_key(target, target))
    drafter = find(DrafterCosts, model_key(pool, pool))
    if costs is None or drafter is None:
        missing = f"target {target.name}" if costs is None else "the drafter"
        raise ConfigError(f"what {missing} costs here is not known yet; run draftpool profile {config}")
    return CostCurves(target.name, costs, drafter)


def hazards_of(choices: GoodputConfig, rates: Mapping[int, float] | None) -> tuple[Floats, ...]:
    """Of each rule. rates: None for what the router expects before it knows.

    Raises ConfigError for acceptance at depths that the drafter has not.
    """
    rules, length = choices.rules, choices.length
    if rates is None:
        acceptance = Acceptance(rules, length, choices.acceptance)
        return tuple(acceptance.hazards(number) for number in range(len(rules)))
    if unknown := sorted(set(rates) - set(choices.exits)):
        exits = ", ".join(map(str, choices.exits))
        raise ConfigError(f"--acceptance names depth {unknown[0]}; the drafter has the exits {exits}")
    return constant_hazards(rules, length, rates)


def table(found: Sequence[Option], title: str) -> Table:
    made = Table("", title=title)
    for head in ("arm", "length"):
        made.add_column(head, no_wrap=True)
    for head in ("draft", "verify", "other", "tokens", "tokens/s"):
        made.add_column(head, justify="right")
    for option in found:
        cost = option.cost
        cells = (f"{ms:.2f}" for ms in (cost.draft_ms, cost.verify_ms, cost.other_ms, option.tokens))
        mark = "→" if option.chosen else ""
        made.add_row(mark, rule_name(option.rule), lengths(option), *cells, f"{option.goodput:.1f}")
    return made


def lengths(option: Option) -> str:
    low, high = min(option.lengths), max(option.lengths)
    both = str(low) if low == high else f"{low}-{high}"
    return f"best: {both}" if option.budget else both
