"""The simulator against the machine where drafting and verifying overlap: what it foretells of rounds in turn, ahead,
and ahead with early picks, and of the oracle's table.

It is fed what passes cost, taken while the other core works and while it rests (bench/contended.py), and what texts of
other prompts say of drafts, second choices and early picks (bench/corrections.py). Nothing is fitted to what is
compared. What is compared: cells measured here, those of a result of bench/mirror, or the speed-ups of one of
bench/oracle_mirror, whose costs and shares are what that was told.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from bench import machine
from bench.acceptance import acceptance_of
from bench.arguments import add_target, ended, measuring
from bench.cells import PAGE, Cell, Subject
from bench.command import listed
from bench.contended import Curves, measured
from bench.corrections import Followed, choices_of, follow
from bench.mirror import POOL_CORE, TARGET_CORE
from bench.ours import DraftPoolEngine
from bench.pair import paired
from bench.pool_process import LinkThread
from bench.run import Engines, measure
from bench.simulated_oracle import Speedup, speedups
from bench.workload import LONGEST, Workload, read_texts
from deployments.arguments import whole
from deployments.local import depth_rule
from drafters.nested import load_nested
from protocol.errors import ConfigError
from router.costs import CostCurves, Curve
from router.modes import Mode
from router.policy import Fixed, Off, Policy
from router.simulate import Overlap, SimulatedPool, SimulatedTarget, closed_batch, simulate
from router.simulate_acceptance import Profile, always
from router.simulate_mirror import MirrorRules
from targets.mirror import MirrorConfig

RESULT = machine.ROOT / "bench/results/simulated_mirror.json"
ASKED = 0.15  # median error


@dataclass(frozen=True, slots=True)
class Compared:
    """table: what it is part of, tokens per second or speed-ups."""

    table: str
    cell: str
    measured: float
    simulated: float

    @property
    def ratio(self) -> float:
        return self.simulated / self.measured


@dataclass(frozen=True, slots=True)
class Known:
    """All that the simulator is told. texts: by temperature."""

    curves: Curves
    exits: tuple[int, ...]
    texts: dict[float, list[Followed]]
    kappa: int
    fan_out: int

    def profile(self, temperature: float, length: int) -> Profile:
        stretches = [text.told() for text in self.texts[temperature]]
        return always(acceptance_of(stretches, self.exits, max(length, 1)))

    def overlap(self, cell: Cell) -> Overlap:
        modes = {"ahead": (Mode.MIRROR,), "mirror": (Mode.HINTED,)}.get(cell.mode)
        if modes is None:
            return None
        number = self.exits.index(depth_rule(self.exits, cell.depth).exits[-1])
        choices = choices_of(self.texts[cell.temperature], number, self.kappa)
        return MirrorRules(self.fan_out, self.kappa, modes, choices)


def know(
    subject: Subject, link: LinkThread, workload: Workload, temperatures: Iterable[float], args: argparse.Namespace
) -> Known:
    """Before anything is measured that is compared, and from other prompts."""
    assert subject.drafter is not None, "there is a pool"
    engine = DraftPoolEngine(replace(subject, drafter=None))
    engine.open()
    try:
        curves = measured(engine.model, subject, link, [POOL_CORE], args.fan_out * subject.max_batch, args.profile)
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


def foretold(known: Known, cell: Cell, token_ms: float, workload: Workload, args: argparse.Namespace) -> float:
    """Tokens per second over `seeds` repetitions of the workload, as bench/metrics.py counts them."""
    overlap, rule = known.overlap(cell), depth_rule(known.exits, cell.depth) if cell.length else None
    curves = slowed(known.curves.contended if overlap else known.curves.alone, token_ms)
    profile = known.profile(cell.temperature, cell.length)

    def policy() -> Policy:
        return Fixed(rule, cell.length) if rule else Off()

    tokens, ms = 0, 0.0
    for seed in range(args.seeds):
        for number, group in enumerate(workload.groups(cell)):
            rng = np.random.default_rng([seed, number])
            requests = closed_batch(len(group), list(map(len, group)), args.max_tokens, rng)
            target = SimulatedTarget("", curves, policy, profile, requests, cell.batch, overlap=overlap)
            made = simulate([target], SimulatedPool() if rule else None, seed).targets[0]
            tokens += made.num_decoded
            ms += max(one.last_ms for one in made.served) - max(one.first_ms for one in made.served)
    return 1e3 * tokens / ms


def slowed(curves: CostCurves, token_ms: float) -> CostCurves:
    """A drafted token takes at least so long (bench/slowed.py)."""
    drafter = curves.drafter
    if not token_ms or drafter is None:
        return curves
    lengths, draft = drafter.draft.points[3], drafter.draft
    floors = np.tile(np.asarray(lengths) * token_ms, len(draft.ms) // len(lengths))
    ms = tuple(np.maximum(draft.ms, floors).tolist())
    return replace(curves, drafter=replace(drafter, draft=Curve(draft.axes, draft.points, ms)))


def fresh(subject: Subject, cells: Sequence[Cell], workload: Workload, args: argparse.Namespace) -> dict[Cell, float]:
    """Tokens per second, medians over interleaved repetitions."""
    config = MirrorConfig(args.fan_out, args.kappa)
    with paired(subject, config, [POOL_CORE]) as engine:
        engines = Engines(engine, dict.fromkeys({cell.mode for cell in cells}, engine))
        results = measure(engines, cells, workload, repeat=args.repeat, max_tokens=args.max_tokens)
    return {result.cell: median(result.tokens_per_second) for result in results}


def cells_of(args: argparse.Namespace) -> list[Cell]:
    return [
        cell
        for temperature in args.temperatures
        for cell in (
            Cell("plain", 1, temperature=temperature),
            *(Cell(mode, 1, d, k, temperature) for mode in args.modes for d in args.depths for k in args.lengths),
        )
    ]


def named(cell: Cell, token_ms: float) -> str:
    order = f" {cell.depth}/{cell.length}" if cell.length else ""
    slow = f", {token_ms:.2f} ms a token" if token_ms else ""
    return f"{cell.mode}{order}, temperature {cell.temperature:g}{slow}"


def setting(own: Speedup) -> str:
    return f"acceptance {own.acceptance:g}, a token {own.cost:.0%} of a pass, length {own.length}"


def recorded(made: dict[str, Any]) -> list[tuple[Cell, float, float]]:
    """Of a result of bench/mirror: cells, ms a token, tokens per second; what a target chose by itself is left out."""
    found = []
    for own in made["cells"]:
        batch, temperature = own["batch"], own["temperature"]
        ahead = "mirror" if own["mirror"].endswith("with early picks") else "ahead"
        kinds = {
            "plain": ("plain", ""),
            "in turn": ("fixed", own["in_turn"]),
            "mirror": (ahead, own["mirror"].split()[0]),
            "mirror's setting in turn": ("fixed", own["mirror"].split()[0]),
        }
        for name, (mode, setting) in kinds.items():
            depth, _, length = setting.partition("/")
            cell = Cell(mode, batch, int(depth) if depth else None, int(length or 0), temperature)
            found.append((cell, own["token_ms"], own["rates"][name]))
    return list(dict.fromkeys(found))


def read(path: Path) -> dict[str, Any]:
    try:
        made: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is no result that can be read: {error}") from None
    return made


def compare(args: argparse.Namespace) -> tuple[list[Compared], dict[str, Any]]:
    """And what the simulator was told."""
    os.sched_setaffinity(0, [TARGET_CORE])
    texts = read_texts(args.prompts, AutoTokenizer.from_pretrained(args.target))
    half = len(texts) // 2
    shown, others = (Workload(own, "mixed", args.num_prompts) for own in (texts[:half], texts[half:]))
    known_cells = recorded(read(args.mirror)) if args.mirror else [(cell, 0.0, 0.0) for cell in cells_of(args)]
    batch = max(cell.batch for cell, _, _ in known_cells)
    subject = Subject(args.target, args.drafter, torch.bfloat16, 1, batch, LONGEST + args.max_tokens)
    link = LinkThread()
    try:
        known = know(subject, link, others, {cell.temperature for cell, _, _ in known_cells}, args)
        rates = {} if args.mirror else fresh(subject, [cell for cell, _, _ in known_cells], shown, args)
    finally:
        link.close()
    compared = [
        Compared("tok/s", named(cell, token_ms), rates.get(cell, rate), foretold(known, cell, token_ms, shown, args))
        for cell, token_ms, rate in known_cells
    ]
    return compared, told(known)


def told(known: Known) -> dict[str, Any]:
    """In ms: a pass over one token and over five, a drafted token of one row and of fan_out, the link; and the shares
    of texts, of the first exit.
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
    return costs | {f"temperature {t:g}": asdict(choices_of(own, 0, known.kappa)) for t, own in known.texts.items()}


def report(compared: Sequence[Compared], told: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    settings = ("target", "drafter", "mirror", "oracle", "num_prompts", "max_tokens", "survey", "seeds", "repeat")
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
    compared, known = ([], {}) if args.only_oracle else compare(args)
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
    parser = measuring(__doc__, depths=[2, 4], lengths=[3, 6], max_tokens=96, out=RESULT)
    add_target(parser)
    parser.add_argument("--temperatures", type=listed(float), default=[0.0, 1.0])
    parser.add_argument("--modes", type=listed(str), default=["fixed", "ahead", "mirror"])
    parser.add_argument("--mirror", type=Path, help="a result of bench.mirror, in place of cells measured now")
    parser.add_argument("--oracle", type=Path, help="a result of bench.oracle_mirror, besides")
    parser.add_argument("--only-oracle", action="store_true", help="nothing else")
    parser.add_argument("--fan-out", type=whole(1), default=8)
    parser.add_argument("--kappa", type=whole(0), default=2)
    parser.add_argument("--repeat", type=whole(1), default=2, help="of the cells (default: %(default)s)")
    parser.add_argument("--profile", type=whole(1), default=7, help="sweeps of what passes cost (default: %(default)s)")
    parser.add_argument("--seeds", type=whole(1), default=8, help="of simulated texts (default: %(default)s)")
    parser.add_argument("--survey", type=whole(1), default=24, help="other prompts (default: %(default)s)")
    args = parser.parse_args(arguments)
    if args.only_oracle and not args.oracle:
        parser.error("--only-oracle needs --oracle FILE")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    return ended("bench.simulated_mirror", run, parse(arguments))


if __name__ == "__main__":
    sys.exit(main())
