"""Two pictures of a result: tokens/s over the batch for each engine, speed-up over the length for each depth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

Row = dict[str, Any]


def save_plots(rows: Sequence[Row], out: Path) -> None:
    """Beside `out`, of the first category and temperature and of batches that start together."""
    first = rows[0] if rows else {}
    shown = [
        row
        for row in rows
        if not row["queue"] and all(row[name] == first[name] for name in ("category", "temperature"))
    ]
    if not shown:
        return
    _save(rates_by_batch(shown), out.with_suffix(".rates.png"))
    if any(row["mode"] == "fixed" and row["speedup"] for row in shown):
        _save(speedups_by_length(shown), out.with_suffix(".speedups.png"))


def rates_by_batch(rows: Sequence[Row]) -> Any:
    """The best setting of each mode at each batch."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for mode in dict.fromkeys(row["mode"] for row in rows):
        best: dict[int, float] = {}
        for row in rows:
            if row["mode"] == mode:
                best[row["batch"]] = max(best.get(row["batch"], 0.0), median(row["tokens_per_second"]))
        engine = next(row["engine"] for row in rows if row["mode"] == mode)
        axes.plot(list(best), list(best.values()), marker="o", label=f"{engine}, {mode}")
    _label(axes, rows, "batch", "decode tokens/s")
    return figure


def speedups_by_length(rows: Sequence[Row]) -> Any:
    """One panel a batch."""
    fixed = [row for row in rows if row["mode"] == "fixed" and row["speedup"]]
    batches = sorted({row["batch"] for row in fixed})
    figure, panels = plt.subplots(
        1, len(batches), figsize=(4 * len(batches), 4), layout="constrained", squeeze=False, sharey=True
    )
    for axes, batch in zip(panels[0], batches, strict=True):
        here = [row for row in fixed if row["batch"] == batch]
        for depth in dict.fromkeys(row["depth"] for row in here):
            curve = sorted((row["length"], row["speedup"]["median"]) for row in here if row["depth"] == depth)
            axes.plot(*zip(*curve, strict=True), marker="o", label=f"depth {depth}")
        axes.axhline(1.0, color="grey", linewidth=1)
        axes.set_title(f"batch {batch}")
        _label(axes, here, "length", "speed-up over the plain loop")
    return figure


def _label(axes: Axes, rows: Sequence[Row], key: str, what: str) -> None:
    ticks = sorted({row[key] for row in rows})
    if key == "batch":
        axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel(key)
    axes.set_ylabel(what)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=110)
    plt.close(figure)
