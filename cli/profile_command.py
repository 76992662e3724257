"""`draftpool profile`: measures the cost of passes on this machine, shows it, and stores it for the router."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from rich.table import Table

from cli.arguments import check_folder, whole
from cli.check import check_config
from cli.output import say, table, warn
from deployments.config import load_config
from deployments.placement import PLACES, as_placed
from deployments.profile_store import keep, write
from deployments.profiling import measure
from router.cost_files import dumps
from router.costs import CostCurves, DrafterCosts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML file")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the curves of all targets here too, as JSON")
    parser.add_argument(
        "--placement", choices=PLACES, help="measure this placement, with the same threads (default: the config's)"
    )
    parser.add_argument("--repeat", type=whole(1), default=5, help="measured sweeps (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    config = as_placed(load_config(args.config), args.placement) if args.placement else load_config(args.config)
    check_folder("--out", args.out)
    warn(check_config(config))
    curves = measure(config, args.repeat)
    stored = dict.fromkeys(keep(costs) for one in curves for costs in (one.target, one.drafter) if costs is not None)
    if args.out:
        write(args.out, dumps(curves))
        stored[args.out] = None
    say(*report(curves), *(f"stored in {path}" for path in stored))
    return 0


def report(curves: list[CostCurves]) -> Iterator[str | Table]:
    for one in curves:
        yield from (verify_table(one), target_line(one))
    for drafter in dict.fromkeys(one.drafter for one in curves if one.drafter):
        yield from (draft_table(drafter), drafter_line(drafter))


def verify_table(curves: CostCurves) -> Table:
    verify = curves.target.verify
    num_rows, tokens, contexts = verify.points
    rows = (
        (f"{rows:.0f}", f"{context:.0f}", *(f"{verify.at(rows, size, context):.2f}" for size in tokens))
        for rows, context in product(num_rows, contexts)
    )
    return table(f"{curves.name}: verify, ms", ("rows", "context"), [f"{size:.0f}/row" for size in tokens], rows)


def target_line(curves: CostCurves) -> str:
    target = curves.target
    rows, chunk = target.max_rows, target.prefill.points[0][-1]
    return (
        f"{curves.name}: bookkeeping {target.overhead.at(1):.2f} ms a round of 1, {target.overhead.at(rows):.2f} of "
        f"{rows:.0f}; a prompt chunk of {chunk:.0f} {target.prefill.at(chunk):.1f} ms; median error of held-back "
        f"passes {100 * target.error:.1f} %"
    )


def draft_table(drafter: DrafterCosts) -> Table:
    draft = drafter.draft
    num_rows, depths, news, lengths = draft.points
    heads = [f"{new:.0f}+{length:.0f}" for length, new in product(lengths, news)]
    rows = (
        (
            f"{rows:.0f}",
            f"{depth:.0f}",
            *(f"{draft.at(rows, depth, new, length):.2f}" for length, new in product(lengths, news)),
        )
        for rows, depth in product(num_rows, depths)
    )
    return table("pool: draft, ms, by new tokens + drafted tokens of each row", ("rows", "depth"), heads, rows)


def drafter_line(drafter: DrafterCosts) -> str:
    rows = drafter.max_rows
    return (
        f"pool: link {drafter.link.at(1):.2f} ms there and back for 1 row, {drafter.link.at(rows):.2f} for {rows:.0f}; "
        f"median error of held-back rounds {100 * drafter.error:.1f} %"
    )
