"""Several targets on one draft replica, policy by policy, load by load: what stands in the table, and against what.

Repetitions are interleaved: the k-th of one policy ran near the k-th of every other, and ratios compare these. Where
several constants compete, the best was chosen on every other repetition and is compared on all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from bench import machine
from bench.policies import FIXED, OFF
from bench.stats import Ratio, best, halves, paired_ratio

CONSTANT = f"{FIXED} "  # begins the names of constant settings, as in "fixed 2/4"
OF_CONSTANT, OF_OFF, OF_OWN_OFF = 0.95, 1.0, 0.95  # what a learning policy has to reach


@dataclass(slots=True)
class LoadCell:
    """A policy at a load, which is requests at a time of each target.

    rates: tokens per second, by repetition and target.
    counts: totals of all targets over the repetitions. plays: share of the rounds by setting, where known.
    """

    policy: str
    load: int
    rates: list[tuple[float, ...]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    plays: dict[str, float] = field(default_factory=dict)

    @property
    def totals(self) -> list[float]:
        return [sum(rates) for rates in self.rates]

    @property
    def by_target(self) -> list[list[float]]:
        return [list(rates) for rates in zip(*self.rates, strict=True)]


@dataclass(frozen=True, slots=True)
class Against:
    """What a cell makes of off and of the best constant at its load, in total; worst_target: of its own off. None where
    there is nothing to compare with.
    """

    off: Ratio | None
    constant: Ratio | None
    worst_target: float | None


def best_constant(cells: Sequence[LoadCell], load: int) -> LoadCell | None:
    constants = {cell.policy: cell for cell in cells if cell.load == load and cell.policy.startswith(CONSTANT)}
    if not constants:
        return None
    return constants[best({name: halves(cell.totals)[0] for name, cell in constants.items()})]


def against(cell: LoadCell, cells: Sequence[LoadCell]) -> Against:
    off = next((one for one in cells if one.policy == OFF and one.load == cell.load), None)
    constant = best_constant(cells, cell.load)
    worst = None
    if off is not None and all(map(all, off.rates)):
        pairs = zip(cell.by_target, off.by_target, strict=True)
        worst = round(min(paired_ratio(ours, theirs).median for ours, theirs in pairs), 3)
    return Against(_over(cell, off), _over(cell, constant), worst)


def _over(cell: LoadCell, other: LoadCell | None) -> Ratio | None:
    return paired_ratio(cell.totals, other.totals) if other is not None and all(other.totals) else None


def met(found: Against) -> bool:
    """Whether a policy reaches what is asked of one that learns."""
    parts = ((found.off, OF_OFF), (found.constant, OF_CONSTANT))
    reached = all(ratio is None or ratio.median >= asked for ratio, asked in parts)
    return reached and (found.worst_target is None or found.worst_target >= OF_OWN_OFF)


def table(cells: Sequence[LoadCell], note: str, place: Mapping[str, Any]) -> str:
    lines = [
        "| load of each target | policy | tokens/s of each target | total | over off | over the best constant "
        "| worst target over its own off | drafted, accepted | plays |",
        "|" + "---|" * 9,
    ]
    for cell in sorted(cells, key=lambda one: one.load):
        found = against(cell, cells)
        each = ", ".join(f"{median(rates):.0f}" for rates in cell.by_target)
        worst = "-" if found.worst_target is None else f"{found.worst_target:.3f}"
        plays = ", ".join(f"{name} {share:.0%}" for name, share in list(cell.plays.items())[:3])
        lines.append(
            f"| {cell.load} | {cell.policy} | {each} | {median(cell.totals):.0f} | {_ratio(found.off)} "
            f"| {_ratio(found.constant)} | {worst} | {_drafted(cell)} | {plays or '-'} |"
        )
    return "\n".join([*lines, "", note, machine.footer(place)]) + "\n"


def _ratio(ratio: Ratio | None) -> str:
    return "-" if ratio is None else f"{ratio.median:.3f} ({ratio.low:.3f}-{ratio.high:.3f})"


def _drafted(cell: LoadCell) -> str:
    drafted, accepted = cell.counts.get("drafted", 0), cell.counts.get("accepted", 0)
    return f"{drafted}, {accepted / drafted:.0%}" if drafted else "-"


def as_json(cells: Sequence[LoadCell]) -> list[dict[str, Any]]:
    return [asdict(cell) | {"against": asdict(against(cell, cells))} for cell in cells]
