"""The simulator against the machine where drafting and verifying overlap: what it foretells of the tables of
bench/mirror, bench/batches and bench/oracle_mirror.

It is fed what passes cost, taken while the other core works and while it rests (bench/contended.py), and what texts of
other prompts say of drafts, second choices and early picks (bench/corrections.py); of the oracle what that was told.
Nothing is fitted to what is compared. Compared are tokens per second, the gain over drafting in turn, the share of hits
and what of the wait they hide.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoTokenizer

from bench import machine
from bench.arguments import add_target, ended, measuring
from bench.cells import PAGE, Cell, Subject
from bench.contended import measured
from bench.corrections import choices_of, follow
from bench.mirror import BATCHES_RESULT, POOL_CORE, TARGET_CORE
from bench.mirror import RESULT as MIRROR_RESULT
from bench.ours import DraftPoolEngine
from bench.pool_process import LinkThread
from bench.simulated_cells import Foretold, Known, foretold
from bench.simulated_oracle import speedups
from bench.workload import LONGEST, Workload, read_texts
from cli.arguments import whole
from drafters.nested import load_nested
from protocol.errors import ConfigError
from router.pipeline import fan_out

RESULT = machine.ROOT / "bench/results/simulated_mirror.json"
ASKED = 0.15  # median error
TABLES = (MIRROR_RESULT, BATCHES_RESULT)

Foretell = Callable[[Cell, float], Foretold]  # of a cell and milliseconds that a drafted token takes at least


@dataclass(frozen=True, slots=True)
class Compared:
    """table: what it is part of."""

    table: str
    cell: str
    measured: float
    simulated: float

    @property
    def ratio(self) -> float:
        return self.simulated / self.measured if self.measured else 1.0 + self.simulated


def know(
    subject: Subject, link: LinkThread, workload: Workload, temperatures: Iterable[float], args: argparse.Namespace
) -> Known:
    """From other prompts than those of the tables."""
    assert subject.drafter is not None, "there is a pool"
    num_rows = max(rows * (1 + fan_out(rows, args.fan_out)) for rows in range(1, subject.max_batch + 1))
    engine = DraftPoolEngine(replace(subject, drafter=None))
    engine.open()
    try:
        curves = measured(engine.model, subject, link, [POOL_CORE], num_rows, args.profile)
        drafter = load_nested(subject.drafter, dtype=subject.dtype, num_positions=subject.positions, page_size=PAGE)
        layers = engine.model.decoder.config.num_layers // 2
        prompts = workload.prompts("", args.survey)
        texts = {
            temperature: follow(engine.model, drafter, prompts, temperature, args.max_tokens, layers, args.kappa)
            for temperature in temperatures
        }
        return Known(curves, drafter.exits, texts, args.kappa, args.fan_out)
    finally:
        engine.close()


def setting(text: str) -> tuple[int, int]:
    """As 2/6 without early picks."""
    depth, _, length = text.split()[0].partition("/")
    return int(depth), int(length)


def of_mirror(own: dict[str, Any], foretell: Foretell) -> Iterator[Compared]:
    """A cell of bench/mirror."""
    batch, temperature, token_ms = own["batch"], own["temperature"], own["token_ms"]
    mode = "mirror" if own["mirror"].endswith("with early picks") else "ahead"
    cells = {
        "plain": Cell("plain", batch, temperature=temperature),
        "in turn": Cell("fixed", batch, *setting(own["in_turn"]), temperature),
        "mirror": Cell(mode, batch, *setting(own["mirror"]), temperature),
        "mirror's setting in turn": Cell("fixed", batch, *setting(own["mirror"]), temperature),
        "chosen": Cell("chosen", batch, *setting(own["mirror"]), temperature),
    }
    told = {name: foretell(cell, token_ms) for name, cell in cells.items()}
    rates = {name: one.tokens_per_second for name, one in told.items()}
    slow = f", {token_ms:.2f} ms a token" if token_ms else ""
    where = f"{own['in_turn']} and {own['mirror']}, batch {batch}, temperature {temperature:g}{slow}"
    for name, cell in cells.items():
        at = f"{name} {cell.depth}/{cell.length}" if cell.length else name
        yield Compared("tok/s", f"{at}, temperature {temperature:g}{slow}", own["rates"][name], rates[name])
    yield Compared("over in turn", where, own["over_in_turn"]["median"], rates["mirror"] / rates["in turn"])
    yield Compared("hits", where, own["hits"]["all"], told["mirror"].hits)
    wait_ms = told["mirror's setting in turn"].wait_ms
    yield Compared("hidden on hits", where, own["hidden_on_hits"], 1 - told["mirror"].hit_ms / wait_ms)


def of_batches(own: dict[str, Any], foretell: Foretell) -> Iterator[Compared]:
    """A cell of bench/batches."""
    batch, temperature = own["batch"], own["temperature"]
    cells = {
        "off": Cell("plain", batch, temperature=temperature),
        "best_in_turn": Cell("fixed", batch, *setting(own["in_turn"]), temperature),
        "chosen": Cell("chosen", batch, temperature=temperature),
    }
    rates = {name: foretell(cell, 0.0).tokens_per_second for name, cell in cells.items()}
    for name in cells:
        where = f"{name.replace('_', ' ')}, batch {batch}, temperature {temperature:g}"
        yield Compared("tok/s by batch", where, own[name], rates[name])
    better = rates["chosen"] / max(rates["off"], rates["best_in_turn"])
    where = f"batch {batch}, temperature {temperature:g}"
    yield Compared("chosen over the better", where, own["over_better"]["median"], better)


def read(path: Path) -> dict[str, Any]:
    try:
        made: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is no result that can be read: {error}") from None
    return made


def compare(paths: Sequence[Path], args: argparse.Namespace) -> tuple[list[Compared], dict[str, Any]]:
    """And what the simulator was told."""
    os.sched_setaffinity(0, [TARGET_CORE])
    rows = [own for path in paths for own in read(path)["cells"]]
    texts = read_texts(args.prompts, AutoTokenizer.from_pretrained(args.target))
    half = len(texts) // 2
    shown, others = (Workload(own, "mixed", args.num_prompts) for own in (texts[:half], texts[half:]))
    batch = max(own["batch"] for own in rows)
    subject = Subject(args.target, args.drafter, torch.bfloat16, 1, batch, LONGEST + args.max_tokens)
    link = LinkThread()
    try:
        known = know(subject, link, others, {own["temperature"] for own in rows}, args)
    finally:
        link.close()

    @cache
    def foretell(cell: Cell, token_ms: float) -> Foretold:
        enough = replace(shown, num_prompts=max(cell.batch, shown.num_prompts))
        groups = [list(map(len, group)) for group in enough.groups(cell)]
        return foretold(known, cell, token_ms, groups, args.max_tokens, range(args.seeds), args.learn)

    kinds = (of_mirror if "mirror" in own else of_batches for own in rows)
    return [one for kind, own in zip(kinds, rows, strict=True) for one in kind(own, foretell)], told(known)


def told(known: Known) -> dict[str, Any]:
    """In ms: a pass over one token and over five, a drafted token of one row and of fan_out, the link; how many times
    longer passes take beside a busy neighbour; and the shares of texts, of the first exit.
    """
    depth, curves = known.exits[0], {"alone": known.curves.alone, "contended": known.curves.contended}
    costs = {
        name: {
            "verify": [own.verify_ms(1, 1, 256), own.verify_ms(1, 5, 256)],
            "draft": [own.draft_ms(1, depth, 1), own.draft_ms(known.fan_out, depth, 1)],
            "rest": own.overhead_ms(1),
            "link": own.link_ms(1),
        }
        for name, own in curves.items()
    }
    beside = {"target": known.curves.target_beside, "pool": known.curves.pool_beside}
    shares = {f"temperature {own:g}": asdict(choices_of(texts, 0, known.kappa)) for own, texts in known.texts.items()}
    return costs | {"beside": beside} | shares


def report(compared: Sequence[Compared], told: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    settings = ("target", "drafter", "mirror", "oracle", "num_prompts", "max_tokens", "survey", "seeds", "learn")
    tables = {}
    for name in dict.fromkeys(one.table for one in compared):
        own = [one for one in compared if one.table == name]
        worst = max(own, key=lambda one: abs(one.ratio - 1))
        error = median(abs(one.ratio - 1) for one in own)
        tables[name] = {"median_error": error, "worst": asdict(worst) | {"ratio": worst.ratio}}
    return {
        "machine": machine.describe(),
        "settings": {name: str(getattr(args, name)) for name in settings},
        "asked": ASKED,
        "told": told,
        "tables": tables,
        "cells": [asdict(one) | {"ratio": one.ratio} for one in compared],
    }


def table(made: dict[str, Any]) -> str:
    lines = ["| what | cell | measured | simulated | ratio |", "|---|---|---|---|---|"]
    lines += [
        f"| {one['table']} | {one['cell']} | {one['measured']:.4g} | {one['simulated']:.4g} | {one['ratio']:.2f} |"
        for one in made["cells"]
    ]
    for name, own in made["tables"].items():
        worst = own["worst"]
        told = f"{name}: median error {own['median_error']:.1%} (asked {made['asked']:.0%}), worst {worst['ratio']:.2f}"
        lines += ["", f"{told} at {worst['cell']}."]
    return "\n".join([*lines, "", machine.footer(made["machine"])]) + "\n"


def run(args: argparse.Namespace) -> int:
    paths = [] if args.only_oracle else args.mirror or [path for path in TABLES if path.exists()]
    compared, known = compare(paths, args) if paths else ([], {})
    if args.oracle:
        compared += [
            Compared(
                "speed-up", f"oracle {own.acceptance:g}, {own.cost:.0%}, {own.length}", own.measured, own.simulated
            )
            for own in speedups(read(args.oracle), args.seeds)
        ]
    made = report(compared, known, args)
    machine.save(args.out, made, table(made))
    sys.stdout.write(table(made))
    return 0 if all(own["median_error"] <= ASKED for own in made["tables"].values()) else 1


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = measuring(__doc__, max_tokens=96, out=RESULT)
    add_target(parser)
    parser.add_argument("--mirror", type=Path, nargs="+", help="results of bench.mirror (default: those kept)")
    parser.add_argument("--oracle", type=Path, help="a result of bench.oracle_mirror, besides")
    parser.add_argument("--only-oracle", action="store_true", help="nothing else")
    parser.add_argument("--fan-out", type=whole(1), default=8)
    parser.add_argument("--kappa", type=whole(0), default=2)
    parser.add_argument("--learn", type=whole(0), default=3, help="runs before, of a target that chooses")
    parser.add_argument("--profile", type=whole(1), default=5, help="sweeps of what passes cost (default: %(default)s)")
    parser.add_argument("--seeds", type=whole(1), default=4, help="of simulated texts (default: %(default)s)")
    parser.add_argument("--survey", type=whole(1), default=24, help="other prompts (default: %(default)s)")
    args = parser.parse_args(arguments)
    if args.only_oracle and not args.oracle:
        parser.error("--only-oracle needs --oracle FILE")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    return ended("bench.simulated_mirror", run, parse(arguments))


if __name__ == "__main__":
    sys.exit(main())
