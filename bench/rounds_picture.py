"""A picture of a few mirror rounds: what the target verifies, and what the pool drafts meanwhile.

python -m bench.rounds_picture      writes docs/mirror_rounds.png and the trace that it is drawn from, for Perfetto
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from transformers import AutoTokenizer

from api.trace import Track, as_json, passes, rounds
from bench import machine
from bench.arguments import MODELS
from bench.cells import Cell, Subject
from bench.command import HELD_OUT
from bench.mirror import POOL_CORE, TARGET_CORE
from bench.pair import PairEngine
from bench.pool_process import pool_process
from bench.workload import LONGEST, Workload, read_texts
from cli.arguments import whole
from protocol.stats import PassStats
from targets.mirror import MirrorConfig
from targets.timeline import RoundRecord

PICTURE = machine.ROOT / "docs/mirror_rounds.png"
TRACE = machine.ROOT / "bench/results/mirror_trace.json"
MAX_TOKENS = 64
COLOURS = {
    "layers": "tab:blue",
    "prefix layers": "tab:blue",
    "suffix layers": "tab:cyan",
    "wait": "tab:red",
    "pass": "tab:green",
}


def traced(
    args: argparse.Namespace, prompt: tuple[int, ...]
) -> tuple[list[RoundRecord], list[tuple[float, PassStats]]]:
    """The rounds of one completion, and the pool's passes, on the same clock."""
    subject = Subject(args.target, None, torch.bfloat16, 1, 1, LONGEST + MAX_TOKENS)
    cell = Cell("mirror" if args.kappa else "ahead", 1, args.depth, args.length)
    with tempfile.TemporaryDirectory() as folder:
        left = Path(folder) / "passes.json"
        with pool_process(args.drafter, [POOL_CORE], 4, passes=left) as member:
            engine = PairEngine(subject, member, MirrorConfig(args.fan_out, args.kappa))
            engine.open()
            for _ in range(2):  # the first warms up
                engine.records.clear()
                engine.run(cell, [prompt], MAX_TOKENS)
            engine.close()
        told = json.loads(left.read_text(encoding="utf-8"))
    ended = [(at, PassStats(**{**stats, "num_exited": tuple(stats["num_exited"])})) for at, stats in told]
    return engine.records[cell], ended


def draw(trace: dict[str, Any], out: Path) -> None:
    """One bar a track; a window that was at hand is marked where its pass begins."""
    figure, axes = plt.subplots(figsize=(11, 2.6), layout="constrained")
    names = {each["pid"]: each["args"]["name"] for each in trace["traceEvents"] if each["ph"] == "M"}
    slices = [each for each in trace["traceEvents"] if each["ph"] == "X"]
    used: set[str] = set()
    for each in slices:
        colour = COLOURS.get(each["name"])
        if colour is not None:
            label = each["name"] if each["name"] not in used else None
            used.add(each["name"])
            span = (each["ts"] / 1e3, each["dur"] / 1e3)
            axes.broken_barh([span], (each["pid"] - 0.35, 0.7), color=colour, edgecolor="white", label=label)
        elif each["name"].startswith("round "):
            told = "+".join(each["args"]["hits"]) or "miss"
            axes.annotate(f"{told}, {each['args']['committed']}", (each["ts"] / 1e3, each["pid"] + 0.42), fontsize=7)
    axes.set_yticks(list(names), list(names.values()))
    axes.set_ylim(0.4, len(names) + 0.8)
    axes.set_xlabel("ms; above a round: where its window came from, tokens committed")
    axes.legend(loc="lower right", ncols=len(used), fontsize=7)
    figure.savefig(out, dpi=130)
    plt.close(figure)


def shown_best(records: Sequence[RoundRecord], ended: Sequence[tuple[float, PassStats]], count: int) -> dict[str, Any]:
    """The trace of those `count` rounds in a row that found the most windows at hand."""
    starts = range(max(len(records) - count, 1))
    start = max(starts, key=lambda at: sum(all(one.hits) for one in records[at : at + count]))
    shown = records[start : start + count]
    begin, end = shown[0].marks.began, shown[-1].ended
    meanwhile = [(at, stats) for at, stats in ended if begin <= at - stats.pass_ms / 1e3 and at <= end]
    return as_json([Track("target", rounds(shown))], [Track("pool", passes(meanwhile))])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, default=MODELS / "large")
    parser.add_argument("--drafter", type=Path, default=MODELS / "drafter")
    parser.add_argument("--depth", type=whole(1), default=2)
    parser.add_argument("--length", type=whole(1), default=4)
    parser.add_argument("--fan-out", type=whole(1), default=4)
    parser.add_argument("--kappa", type=whole(0), default=0)
    parser.add_argument("--rounds", type=whole(1), default=8)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--out", type=Path, default=TRACE)
    args = parser.parse_args()
    os.sched_setaffinity(0, [TARGET_CORE])
    texts = read_texts(HELD_OUT, AutoTokenizer.from_pretrained(args.target))
    (prompt,) = Workload(texts, "equal", 1).prompts("", 1)
    records, ended = traced(args, prompt)
    trace = shown_best([one for one in records if any(one.lengths)], ended, args.rounds)
    args.out.write_text(json.dumps(trace) + "\n", encoding="utf-8")
    draw(trace, args.picture)
    sys.stdout.write(f"{len(trace['traceEvents'])} events in {args.out}, drawn in {args.picture}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
