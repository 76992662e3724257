"""Tokens per second of a target in either placement, in turn and ahead, from the costs that are kept here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from deployments.config import AppConfig, TargetConfig
from deployments.placement import Place, pool_of
from protocol.plan import Mode
from router.explain import Option, best


@dataclass(frozen=True, slots=True)
class PlacementOption:
    """One way to run, with its best arm. threads: of the target, and of a pool that has its own."""

    place: Place
    threads: str
    mode: Mode
    best: Option


def rows_of(config: AppConfig, target: TargetConfig, found: Sequence[Option]) -> list[PlacementOption]:
    """In turn as the router would choose, and ahead likewise, where the placement allows it."""
    pool = pool_of(config, target)
    apart = pool is not None and config.placement == "separate"
    threads = f"{target.threads} + {pool.threads}" if pool is not None and apart else str(target.threads)
    made = []
    for mode in Mode:
        arms = [option for option in found if option.mode is mode]
        if arms:
            top = best(arms)
            made.append(PlacementOption(config.placement, threads, mode, top))
    return made


def table(rows: Sequence[PlacementOption], title: str) -> Table:
    made = Table("", title=title)
    for head in ("placement, rounds", "threads", "arm"):
        made.add_column(head, no_wrap=True)
    for head in ("length", "ms", "tokens/s"):
        made.add_column(head, justify="right")
    top = max(rows, key=lambda row: row.best.goodput)
    for row in rows:
        mark = "→" if row is top else ""
        arm = row.best
        cells = (str(arm.length), f"{arm.round_ms:.2f}", f"{arm.goodput:.1f}")
        made.add_row(mark, f"{row.place}, {row.mode}", row.threads, arm.name, *cells)
    return made
