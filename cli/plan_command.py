"""`draftpool plan`: what the router would choose for a batch with the costs kept here, beside all it could.

And what target and drafter would bring if they were placed otherwise.
"""

from __future__ import annotations

import argparse
from argparse import ArgumentTypeError
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from rich.console import Console
from rich.table import Table

from cli import placement_plan
from cli.arguments import whole
from cli.placement_plan import PlacementOption, rows_of
from deployments.config import AppConfig, PoolConfig, TargetConfig, load_config
from deployments.config_speculation import AdaptiveSpeculation, GoodputSpeculation
from deployments.placement import PLACES, as_placed, pool_of
from deployments.profile_store import find, model_key
from drafters.manifest import Manifest
from model.files import resolve
from protocol.errors import ConfigError
from protocol.plan import BatchView, Mode, SequenceView
from router.belief import Belief, prior
from router.costs import CostCurves, DrafterCosts, TargetCosts
from router.explain import Option, assumed, best, options
from router.tables import Costs, tables


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
    in_turn = [option for option in found if option.mode is Mode.SERIAL]
    console.print(table(in_turn, f"{target.name}: rounds of {of_batch}, in ms"))
    if not isinstance(target.speculation, AdaptiveSpeculation):
        console.print(f"target {target.name} does not choose itself: its policy is not adaptive", soft_wrap=True)
    rows, notes = placements(config, args)
    console.print(placement_plan.table(rows, f"{target.name}: {of_batch}, by placement"))
    for note in notes:
        console.print(note, soft_wrap=True)
    return 0


def planned(config: AppConfig, where: str, args: argparse.Namespace) -> tuple[Option, ...]:
    """What a target could do, in turn and, where the pool has its own place, ahead.

    where: the config, as the command that profiles names it. Raises ConfigError for what is not known.
    """
    target, pool = chosen(config, args.target)
    settings = target.speculation if isinstance(target.speculation, AdaptiveSpeculation) else GoodputSpeculation()
    exits = exits_of(settings, pool)
    apart = config.placement == "separate"
    costs = tables(kept(where, target, pool), exits, settings.length, args.batch, linked=apart)
    sequence = SequenceView(args.context, args.remaining)
    view = BatchView((sequence,) * args.batch, modes=(Mode.SERIAL, Mode.AHEAD) if apart else (Mode.SERIAL,))
    return options(belief_of(costs, args.acceptance), costs, view)


def placements(config: AppConfig, args: argparse.Namespace) -> tuple[list[PlacementOption], list[str]]:
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
        rows += rows_of(placed, chosen(placed, args.target)[0], found)
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


def exits_of(settings: AdaptiveSpeculation, pool: PoolConfig) -> tuple[int, ...]:
    """What there is to choose from. Raises ConfigError for a damaged manifest."""
    try:
        return settings.exits or Manifest.load(resolve(pool.path)).exits
    except ValueError as error:
        raise ConfigError(str(error)) from None


def kept(config: Path | str, target: TargetConfig, pool: PoolConfig) -> CostCurves:
    """Raises ConfigError naming the command that measures what is not there."""
    costs = find(TargetCosts, model_key(target, target))
    drafter = find(DrafterCosts, model_key(pool, pool))
    if costs is None or drafter is None:
        missing = f"target {target.name}" if costs is None else "the drafter"
        raise ConfigError(f"what {missing} costs here is not known yet; run draftpool profile {config}")
    return CostCurves(target.name, costs, drafter)


def belief_of(costs: Costs, rates: Mapping[int, float] | None) -> Belief:
    """rates: None for what the router expects at first. Raises ConfigError for depths that the drafter has not."""
    if rates is None:
        return prior(costs)
    if unknown := sorted(set(rates) - set(costs.exits)):
        exits = ", ".join(map(str, costs.exits))
        raise ConfigError(f"--acceptance names depth {unknown[0]}; the drafter has the exits {exits}")
    return assumed(costs, rates)


def table(found: Sequence[Option], title: str) -> Table:
    made = Table("", title=title)
    for head in ("arm", "length"):
        made.add_column(head, no_wrap=True)
    for head in ("draft", "verify", "rest", "tokens", "tokens/s"):
        made.add_column(head, justify="right")
    chosen = best(found)
    for option in found:
        cells = (f"{ms:.2f}" for ms in (option.draft_ms, option.verify_ms, option.rest_ms, option.tokens))
        mark = "→" if option is chosen else ""
        made.add_row(mark, option.name, str(option.length), *cells, f"{option.goodput:.1f}")
    return made
