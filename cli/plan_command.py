"""`draftpool plan`: what the router would choose for a batch with the costs kept here, beside all it could.

Also what target and drafter would bring in the other placement.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from itertools import starmap
from pathlib import Path

from rich.table import Table

from cli.arguments import rates, whole
from cli.output import listed, say, table
from deployments.config import AppConfig, PoolConfig, TargetConfig, load_config
from deployments.config_speculation import AdaptiveSpeculation, GoodputSpeculation
from deployments.models import translation_to
from deployments.placement import PLACES, as_placed, pool_of, without_link
from deployments.policies import drafts_ahead
from deployments.profile_store import drafter_key, find, model_key
from deployments.profiling import works_on_kv_of
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


def run(args: argparse.Namespace) -> int:
    config = load_config(args.config)
    target, _ = find_target(config, args.target)
    batch = f"{args.batch} rows at {args.context} tokens"
    in_turn = [option for option in plan(config, str(args.config), args) if option.mode is Mode.IN_TURN]
    say(option_table(in_turn, f"{target.name}: rounds of {batch}, in ms"))
    if not isinstance(target.speculation, AdaptiveSpeculation):
        say(f"target {target.name} does not choose itself: its policy is not adaptive")
    rows, notes = plan_placements(config, args)
    say(placement_table(rows, f"{target.name}: {batch}, by placement"), *notes)
    return 0


def plan(config: AppConfig, place: str, args: argparse.Namespace) -> tuple[Option, ...]:
    """What a target could do, in turn and, where a replica of it would, ahead.

    place: the arguments by which `draftpool profile` measures it. Raises ConfigError for unknown targets or costs.
    """
    target, pool = find_target(config, args.target)
    settings = target.speculation if isinstance(target.speculation, AdaptiveSpeculation) else GoodputSpeculation()
    exits = settings.exits or Manifest.load(resolve(pool.path)).exits
    costs = tables(kept(place, config, target, pool), exits, settings.length, args.batch)
    sequence = SequenceView(args.context, args.remaining)
    drafted = target.model_copy(update={"speculation": settings})
    translates = translation_to(pool, drafted) is not None
    ahead = drafts_ahead(drafted, apart=config.placement == "separate", translates=translates)
    view = BatchView((sequence,) * args.batch, modes=tuple(Mode) if ahead else (Mode.IN_TURN,))
    return options(belief_of(costs, args.acceptance), costs, view)


def plan_placements(config: AppConfig, args: argparse.Namespace) -> tuple[list[tuple[str, str, Option]], list[str]]:
    """The best option in each placement and mode (name, threads, option), the config's own placement first.

    The second list says why a placement is left out.
    """
    rows, notes = [], []
    for place in sorted(PLACES, key=lambda place: place != config.placement):
        arguments = str(args.config) if place == config.placement else f"{args.config} --placement {place}"
        try:
            placed = as_placed(config, place)
            possible = plan(placed, arguments, args)
        except ConfigError as error:
            notes.append(f"{place} is left out: {error}")
            continue
        target, pool = find_target(placed, args.target)
        threads = f"{target.threads} + {pool.threads}" if place == "separate" else str(target.threads)
        by_mode = {mode: [option for option in possible if option.mode is mode] for mode in Mode}
        rows += [(f"{place}, {mode}", threads, best(arms)) for mode, arms in by_mode.items() if arms]
    return rows, notes


def find_target(config: AppConfig, name: str | None) -> tuple[TargetConfig, PoolConfig]:
    """A target, and the pool as it drafts for it. Raises ConfigError if the config has no such target, or no pool."""
    for target in config.targets:
        pool = pool_of(config, target)
        if pool is None:
            raise ConfigError("there is no pool to draft; add one")
        if name in (None, target.name):
            return target, pool
    names = listed(target.name for target in config.targets)
    raise ConfigError(f"--target {name!r} is not in the config; it has {names}")


def kept(place: Path | str, config: AppConfig, target: TargetConfig, pool: PoolConfig) -> CostCurves:
    """The measured costs; pool: as placed for the target. Raises ConfigError that names the command to measure what is
    missing.
    """
    costs = find(TargetCosts, model_key(target, target))
    drafter = find(DrafterCosts, drafter_key(pool, own=works_on_kv_of(target, config)))
    if costs is None or drafter is None:
        missing = f"target {target.name}" if costs is None else "the drafter"
        raise ConfigError(f"what {missing} costs here is not known yet; run draftpool profile {place}")
    return CostCurves(target.name, costs, drafter if config.placement == "separate" else without_link(drafter))


def belief_of(costs: Costs, acceptance: Mapping[int, float] | None) -> Belief:
    """acceptance: None for what the router expects at first. Raises ConfigError for depths that are no exits."""
    if acceptance is None:
        return prior(costs)
    if unknown := sorted(set(acceptance) - set(costs.exits)):
        raise ConfigError(f"--acceptance names depth {unknown[0]}; the drafter has the exits {listed(costs.exits)}")
    return assumed(costs, acceptance)


def option_table(possible: Sequence[Option], title: str) -> Table:
    chosen = best(possible)

    def cells(option: Option) -> Iterator[str]:
        yield from ("→" if option is chosen else "", option.name, str(option.length))
        yield from (f"{ms:.2f}" for ms in (option.draft_ms, option.verify_ms, option.rest_ms, option.tokens))
        yield f"{option.goodput:.1f}"

    heads = ("draft", "verify", "rest", "tokens", "tokens/s")
    return table(title, ("", "arm", "length"), heads, map(cells, possible))


def placement_table(rows: Sequence[tuple[str, str, Option]], title: str) -> Table:
    top = max((option for *_, option in rows), key=lambda option: option.goodput)

    def cells(name: str, threads: str, arm: Option) -> Iterator[str]:
        yield from ("→" if arm is top else "", name, threads, arm.name)
        yield from (str(arm.length), f"{arm.round_ms:.2f}", f"{arm.goodput:.1f}")

    heads = ("length", "ms", "tokens/s")
    return table(title, ("", "placement, rounds", "threads", "arm"), heads, starmap(cells, rows))
