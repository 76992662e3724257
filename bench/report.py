"""A result of `draftpool bench` as JSON and as a table of Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench import machine
from bench.metrics import CellResult

Row = dict[str, Any]  # one cell of a stored result
VARIANTS = ("category", "temperature", "queue")  # columns that show only where they differ
HEADER = (
    *("batch", "engine", "mode", "depth", "length", "tokens/s", "against plain", "prompt tokens/s"),
    *("TTFT ms", "TPOT ms"),
    *("acceptance length", "acceptance rate", "identical"),
)


def save(
    results: Sequence[CellResult],
    settings: Mapping[str, object],
    place: Mapping[str, object],
    left_out: Mapping[str, str],
    out: Path | None,
) -> str:
    """The Markdown; when `out` is given, it and the JSON are written too. place: what `describe` told, and engines."""
    cells = [result.as_json() for result in results]
    report = {"machine": place, "settings": settings, "left_out": left_out, "cells": cells}
    text = markdown(json.loads(json.dumps(report)))
    if out is not None:
        machine.save(out, report, text)
    return text


def markdown(report: dict[str, Any]) -> str:
    rows: list[Row] = report["cells"]
    varying = [name for name in VARIANTS if len({row[name] for row in rows}) > 1]
    lines = [[str(row[name]) for name in varying] + _columns(row) for row in rows]
    left_out = [f"Left out: {mode} ({reason})." for mode, reason in report["left_out"].items()]
    return machine.markdown([*varying, *HEADER], lines, *left_out, *facts(report))


def facts(report: dict[str, Any]) -> list[str]:
    """Where and how it was measured."""
    listed = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in report["settings"].items())
    counts = [len(row["tokens_per_second"]) for row in report["cells"]]
    return [
        f"Medians of {min(counts, default=0)} interleaved repetitions, with the 90 % interval of the paired ratio; "
        f"{listed}.",
        machine.footer(report["machine"]),
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
        _figure(median(row["prompt_tokens_per_second"] or [0]) or None, ".0f"),
        f"{row['ttft_ms']:.1f}",
        _figure(row["tpot_ms"], ".2f"),
        _figure(row["mean_acceptance_length"], ".2f"),
        _figure(row["acceptance_rate"], ".3f"),
        _figure(row["identical"], ".0%"),
    ]


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
