"""A result as JSON, as a Markdown table, and as the README's table.

Where a table names the best of several lengths, it was chosen on every other repetition, and the figures are those
of the rest.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench import machine
from bench.metrics import CellResult
from bench.stats import best, halves

README = machine.ROOT / "README.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
Row = dict[str, Any]  # one cell of a stored result
VARIANTS = ("category", "temperature", "queue")  # columns that show only where they differ
HEADER = (
    *("batch", "engine", "mode", "depth", "length", "tokens/s", "against plain", "TTFT ms", "TPOT ms"),
    *("acceptance length", "acceptance rate", "identical", "peak MB"),
)


def save(
    results: Sequence[CellResult],
    settings: Mapping[str, object],
    versions: Mapping[str, str],
    left_out: Mapping[str, str],
    out: Path | None,
) -> str:
    """The Markdown; when `out` is given, it and the JSON are written too."""
    place = machine.describe() | {"engines": versions}
    cells = [result.as_json() for result in results]
    report = {"machine": place, "settings": settings, "left_out": left_out, "cells": cells}
    text = markdown(json.loads(json.dumps(report)))
    if out is not None:
        machine.save(out, report, text)
    return text


def markdown(report: dict[str, Any]) -> str:
    rows: list[Row] = report["cells"]
    varying = [name for name in VARIANTS if len({row[name] for row in rows}) > 1]
    lines = [_line([*varying, *HEADER]), _line(["---"] * (len(varying) + len(HEADER)))]
    lines += [_line([str(row[name]) for name in varying] + _columns(row)) for row in rows]
    left_out = [f"Left out: {mode} ({reason})." for mode, reason in report["left_out"].items()]
    return "\n".join([*lines, "", *left_out, *facts(report)]) + "\n"


def facts(report: dict[str, Any]) -> list[str]:
    """Where and how it was measured."""
    place, settings = report["machine"], report["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in place["engines"].items())
    told = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())
    return [
        f"Medians of interleaved repetitions, with the 90 % interval of the paired ratio; {told}.",
        f"{machine.hardware(place)}, {versions}; commit {place['commit']}; `{place['command']}`.",
    ]


def _columns(row: Row) -> list[str]:
    speedup = row["speedup"]
    against = f"{speedup['median']:.2f}x ({speedup['low']:.2f}-{speedup['high']:.2f})" if speedup else ""
    return [
        str(row["batch"]),
        row["engine"],
        row["mode"],
        "" if row["depth"] is None else str(row["depth"]),
        str(row["length"] or ""),
        f"{median(row['tokens_per_second']):.0f}",
        against,
        f"{row['ttft_ms']:.1f}",
        _figure(row["tpot_ms"], ".2f"),
        _figure(row["mean_acceptance_length"], ".2f"),
        _figure(row["acceptance_rate"], ".3f"),
        _figure(row["identical"], ".0%"),
        _figure(row["peak_rss_mb"], ".0f"),
    ]


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _line(columns: Iterable[str]) -> str:
    return f"| {' | '.join(columns)} |"


def bests(rows: Sequence[Row]) -> list[Row]:
    """Of each mode, batch and depth the best length, chosen on half of the repetitions; its rates are the others'."""
    families: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        families.setdefault((*(row[name] for name in (*VARIANTS, "batch", "mode", "depth")),), []).append(row)
    return [_best(family) for family in families.values()]


def _best(family: Sequence[Row]) -> Row:
    if len(family) == 1 or len(family[0]["tokens_per_second"]) < 2:
        return family[0]
    chosen = family[best({at: halves(row["tokens_per_second"])[0] for at, row in enumerate(family)})]
    return chosen | {"tokens_per_second": halves(chosen["tokens_per_second"])[1]}


def readme_table(reports: Sequence[dict[str, Any]]) -> str:
    """The Markdown between the README's markers."""
    header = (
        "target",
        "batch",
        "engine",
        "draft",
        "tokens/s",
        "against our plain loop",
        "acceptance length",
        "identical",
    )
    lines = [_line(header), _line(["---"] * len(header))]
    for report in reports:
        for row in bests([row for row in report["cells"] if not row["queue"]]):
            speedup = row["speedup"]
            lines.append(
                _line(
                    [
                        report["settings"]["target"],
                        str(row["batch"]),
                        row["engine"],
                        _draft(row),
                        f"{median(row['tokens_per_second']):.0f}",
                        f"{speedup['median']:.2f}x" if speedup else "",
                        _figure(row["mean_acceptance_length"], ".2f"),
                        _figure(row["identical"], ".0%"),
                    ]
                )
            )
    return "\n".join([*lines, "", *(line for report in reports for line in facts(report))])


def _draft(row: Row) -> str:
    if not row["length"]:
        return "none" if row["mode"] in ("plain", "generate", "openvino", "url") else row["mode"]
    name = f"depth {row['depth']}" if row["mode"] == "fixed" else row["mode"]
    return f"{name}, length {row['length']}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Put stored results into the README.")
    parser.add_argument("results", type=Path, nargs="+")
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in parser.parse_args().results]
    text = README.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    README.write_text(f"{before}{BEGIN}\n{readme_table(reports)}\n{END}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
