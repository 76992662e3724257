"""`draftpool profile`: measures the cost of passes on this machine, shows it, and stores it for the router."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cli.arguments import whole
from cli.check import check_config
from cli.plot import plot
from deployments.config import load_config
from deployments.placement import PLACES, as_placed
from deployments.profile_store import keep, write
from deployments.profiling import measure
from protocol.errors import ConfigError
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
    if args.out and not args.out.parent.is_dir():
        raise ConfigError(f"--out {args.out}: there is no folder {args.out.parent}; create it, or name another")
    errors = Console(stderr=True)
    for warning in check_config(config):
        errors.print(warning, highlight=False, soft_wrap=True)
    curves = measure(config, args.repeat)
    kept = dict.fromkeys(keep(costs) for one in curves for costs in (one.target, one.drafter) if costs is not None)
    if args.out:
        write(args.out, dumps(curves))
    console = Console(highlight=False)
    for part in report(curves):
        console.print(part, soft_wrap=isinstance(part, str))
    for path in [*kept, *([args.out] if args.out else [])]:
        console.print(f"stored in {path}", soft_wrap=True)
    return 0


def report(curves: list[CostCurves]) -> Iterator[str | Table]:
    for one in curves:
        yield from (verify_table(one), verify_plot(one), target_line(one))
    drafter = next((one.drafter for one in curves if one.drafter), None)
    if drafter:
        yield from (draft_table(drafter), draft_plot(drafter), drafter_line(drafter))


def verify_table(curves: CostCurves) -> Table:
    num_rows, tokens, contexts = curves.target.verify.points
    made = Table("rows", "context", *(f"{size:.0f}/row" for size in tokens), title=f"{curves.name}: verify, ms")
    for rows, context in product(num_rows, contexts):
        cells = (f"{curves.target.verify.at(rows, size, context):.2f}" for size in tokens)
        made.add_row(f"{rows:.0f}", f"{context:.0f}", *cells)
    return made


def verify_plot(curves: CostCurves) -> str:
    """A plot over all tokens of the batch, with one series per context."""
    num_rows, tokens, contexts = curves.target.verify.points
    series = {
        f"context {context:.0f}": [
            (rows * size, curves.target.verify.at(rows, size, context)) for rows, size in product(num_rows, tokens)
        ]
        for context in contexts
    }
    return plot(f"{curves.name}: verify, ms", series, "tokens in the batch")


def target_line(curves: CostCurves) -> str:
    target = curves.target
    rows, chunk = target.verify.points[0][-1], target.prefill.points[0][-1]
    return (
        f"{curves.name}: bookkeeping {target.overhead.at(1):.2f} ms a round of 1, {target.overhead.at(rows):.2f} of "
        f"{rows:.0f}; a prompt chunk of {chunk:.0f} {target.prefill.at(chunk):.1f} ms; median error of held-back "
        f"passes {100 * target.error:.1f} %"
    )


def draft_table(drafter: DrafterCosts) -> Table:
    num_rows, depths, news, lengths = drafter.draft.points
    heads = (f"{new:.0f}+{length:.0f}" for length, new in product(lengths, news))
    made = Table("rows", "depth", *heads, title="pool: draft, ms, by new tokens + drafted tokens of each row")
    for rows, depth in product(num_rows, depths):
        cells = (f"{drafter.draft.at(rows, depth, new, length):.2f}" for length, new in product(lengths, news))
        made.add_row(f"{rows:.0f}", f"{depth:.0f}", *cells)
    return made


def draft_plot(drafter: DrafterCosts) -> str:
    num_rows, depths, news, lengths = drafter.draft.points
    series = {
        f"depth {depth:.0f}": [(rows, drafter.draft.at(rows, depth, news[0], lengths[-1])) for rows in num_rows]
        for depth in depths
    }
    return plot(f"pool: a draft of {lengths[-1]:.0f} tokens a row, ms", series, "rows")


def drafter_line(drafter: DrafterCosts) -> str:
    rows = drafter.link.points[0][-1]
    return (
        f"pool: link {drafter.link.at(1):.2f} ms there and back for 1 row, {drafter.link.at(rows):.2f} for {rows:.0f}; "
        f"median error of held-back rounds {100 * drafter.error:.1f} %"
    )
