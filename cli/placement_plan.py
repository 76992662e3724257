"""Tokens per second of a target in either placement, in turn and ahead, from the costs that are kept here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from deployments.config import AppConfig, TargetConfig
from deployments.placement import Place, pool_of
from router.explain import Option, rule_name
from router.overlap import Overlap


@dataclass(frozen=True, slots=True)
class Row:
    """One way to run. threads: of the target, and of a pool that has its own."""

    place: Place
    threads: str
    how: str
    arm: str
    length: str
    round_ms: float
    tokens: float

    @property
    def goodput(self) -> float:
        return 1e3 * self.tokens / self.round_ms


def rows_of(config: AppConfig, target: TargetConfig, found: Sequence[Option], ahead: Sequence[Overlap]) -> list[Row]:
    """In turn as the router would choose, and ahead at the best depth and length, where the placement allows it."""
    pool = pool_of(config, target)
    apart = pool is not None and config.placement == "separate"
    threads = f"{target.threads} + {pool.threads}" if pool is not None and apart else str(target.threads)
    turn = next(option for option in found if option.chosen)
    lengths = sorted({min(turn.lengths), max(turn.lengths)})
    told = "-".join(map(str, lengths))
    made = [
        Row(config.placement, threads, "in turn", rule_name(turn.rule), told, turn.cost.total_ms, turn.tokens),
    ]
    if apart and ahead:
        best = max(ahead, key=lambda one: one.goodput)
        arm, length = rule_name(best.rule), str(best.length)
        made.append(Row(config.placement, threads, "mirror", arm, length, best.law.mirror_ms, best.tokens))
    return made


def table(rows: Sequence[Row], title: str) -> Table:
    made = Table("", title=title)
    for head in ("placement, rounds", "threads", "arm"):
        made.add_column(head, no_wrap=True)
    for head in ("length", "ms", "tokens/s"):
        made.add_column(head, justify="right")
    best = max(rows, key=lambda row: row.goodput)
    for row in rows:
        mark = "→" if row is best else ""
        cells = (row.length, f"{row.round_ms:.2f}", f"{row.goodput:.1f}")
        made.add_row(mark, f"{row.place}, {row.how}", row.threads, row.arm, *cells)
    return made
