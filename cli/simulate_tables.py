"""What `draftpool simulate` prints and draws."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from rich.table import Table

from cli.plot import MARKS, plot
from cli.simulate_report import TargetReport, report
from protocol.errors import ConfigError
from protocol.plan import DepthRule
from simulation.simulate import Simulation

ALL = "all"
NUM_SHARES = 4


@dataclass(frozen=True, slots=True)
class Capacity:
    """busy: of the replicas, on average; None without any."""

    targets: tuple[TargetReport, ...]
    tokens_per_s: float
    busy: float | None

    @classmethod
    def of(cls, found: Simulation) -> Capacity:
        busy = [one.busy_s / found.elapsed_s for one in found.network.replicas]
        num_tokens = sum(target.num_tokens for target in found.targets)
        rate = num_tokens / found.elapsed_s
        return cls(tuple(map(report, found.targets)), rate, fmean(busy) if busy else None)


def shown(reports: Mapping[int, Capacity]) -> Iterator[str | Table]:
    yield table(reports)
    for count, found in reports.items():
        if count:
            yield from (f"{target.name}, {replicas(count)}: {shares(target)}" for target in found.targets)
    pools = {count: found for count, found in reports.items() if count}
    curves = series(pools, rate)
    if len(pools) > 1 and len(curves) <= len(MARKS):
        yield plot("tokens per second", curves, "draft replicas")


def replicas(count: int) -> str:
    return "1 replica" if count == 1 else f"{count} replicas"


def table(reports: Mapping[int, Capacity]) -> Table:
    times = ("TTFT ms p50", "p99", "TPOT ms p50", "p99")
    heads = ("target", "tokens/s", *times, "tokens/round", "wait ms", "draft ms", "late", "at hand")
    made = Table("replicas", "pool busy", *heads, title="simulated")
    for count, found in reports.items():
        busy = "" if found.busy is None else f"{found.busy:.0%}"
        made.add_row(str(count), busy, ALL, f"{found.tokens_per_s:.1f}")
        for target in found.targets:
            made.add_row("", "", *cells(target))
    return made


def cells(target: TargetReport) -> Iterator[str]:
    ttft, tpot, length = target.ttft_ms, target.tpot_ms, target.tokens_per_round
    yield from (target.name, f"{target.tokens_per_s:.1f}")
    yield from (f"{ttft.p50:.2f}", f"{ttft.p99:.2f}") if ttft else ("", "")
    yield from (f"{tpot.p50:.3f}", f"{tpot.p99:.3f}") if tpot else ("", "")
    yield "" if length is None else f"{length:.2f}"
    yield from (f"{target.wait_ms:.2f}", f"{target.draft_ms:.2f}", f"{target.late:.1%}", f"{target.at_hand:.0%}")


def shares(target: TargetReport) -> str:
    """What its rows drafted most often."""
    return ", ".join(
        f"{share:.0%} {f'{length} tokens at depth {to(rule)}' if rule else 'plain'}"
        for (rule, length), share in target.drafted[:NUM_SHARES]
    )


def to(rule: DepthRule) -> str:
    """A cascade's exits from the first to the last."""
    return "-".join(map(str, dict.fromkeys((rule.exits[0], rule.exits[-1]))))


def series(
    reports: Mapping[int, Capacity], value: Callable[[TargetReport], float]
) -> dict[str, list[tuple[float, float]]]:
    """Of each target that was asked anything, the value by number of replicas."""
    points: dict[str, list[tuple[float, float]]] = {}
    for count, found in reports.items():
        for target in found.targets:
            if target.ttft_ms:
                points.setdefault(target.name, []).append((count, value(target)))
    return points


def draw(reports: Mapping[int, Capacity], path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        sys.stderr.write("draftpool: the plot is left out, it needs matplotlib; install with '.[bench]'\n")
        return
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, name, value in zip(panels, ("tokens per second", "TPOT, ms (median)"), (rate, tpot), strict=True):
        for target, points in series(reports, value).items():
            axes.plot(*zip(*points, strict=True), marker="o", label=target)
        axes.set(xlabel="draft replicas", ylabel=name, ylim=(0, None))
        axes.legend()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plot {path}: {error}") from None


def rate(target: TargetReport) -> float:
    return target.tokens_per_s


def tpot(target: TargetReport) -> float:
    return target.tpot_ms.p50 if target.tpot_ms else 0.0
