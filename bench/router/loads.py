"""Several targets on one draft replica, policy by policy, load by load: what stands in the table, and against what.

Repetitions are interleaved: the k-th of one policy ran near the k-th of every other, and ratios compare these. Where
several constants compete, the best was chosen on every other repetition and is compared on all of them.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from bench import machine
from bench.arguments import MODELS, checkpoint, plain_parser
from bench.policies import ADAPTIVE, FIXED, OFF, POLICIES, often
from bench.stats import Ratio, best, halves, paired_ratio
from cli.arguments import one_of, several, whole

HEADER = (
    *("load of each target", "policy", "tokens/s of each target", "total", "over off", "over the best constant"),
    *("worst target over its own off", "drafted, accepted", "plays"),
)
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


def loads_parser(description: str | None, out: str) -> ArgumentParser:
    parser = plain_parser(description, out)
    add = parser.add_argument
    add("--target", type=checkpoint, default=MODELS / "small")
    add("--drafter", type=checkpoint, default=MODELS / "drafter")
    add("--policies", type=several(one_of(*POLICIES)), default=list(POLICIES), help=f"default: {','.join(POLICIES)}")
    add("--load", type=several(whole(1)), default=[1, 2, 4], help="of each target (default: %(default)s)")
    add("--repeat", type=whole(1), default=5, help="interleaved repetitions (default: %(default)s)")
    add("--warm-s", type=float, default=4.0, help="before each measurement (default: %(default)s)")
    add("--measure-s", type=float, default=10.0, help="of each measurement (default: %(default)s)")
    add("--max-tokens", type=whole(2), default=128, help="default: %(default)s")
    return parser


def all_met(cells: Sequence[LoadCell]) -> bool:
    """By those that learn."""
    return all(met(against(cell, cells)) for cell in cells if cell.policy in ADAPTIVE)


def table(cells: Sequence[LoadCell], note: str, place: Mapping[str, Any]) -> str:
    rows = [_row(cell, against(cell, cells)) for cell in sorted(cells, key=lambda one: one.load)]
    return machine.markdown(HEADER, rows, note, machine.footer(place))


def _row(cell: LoadCell, found: Against) -> list[object]:
    each = ", ".join(f"{median(rates):.0f}" for rates in cell.by_target)
    ratios = [ratio.text(".3f") if ratio else "-" for ratio in (found.off, found.constant)]
    worst = "-" if found.worst_target is None else f"{found.worst_target:.3f}"
    start = [cell.load, cell.policy, each, f"{median(cell.totals):.0f}", *ratios]
    return [*start, worst, _drafted(cell), often(cell.plays) or "-"]


def _drafted(cell: LoadCell) -> str:
    drafted, accepted = cell.counts.get("drafted", 0), cell.counts.get("accepted", 0)
    return f"{drafted}, {accepted / drafted:.0%}" if drafted else "-"


def as_json(cells: Sequence[LoadCell]) -> list[dict[str, Any]]:
    return [asdict(cell) | {"against": asdict(against(cell, cells))} for cell in cells]
