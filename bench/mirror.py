"""Mirror on two fixed devices against drafting in turn on the same two, and against what the law allows.

    sweep     every depth and length in turn, ahead, and ahead with early picks; the best of each goes on
    pairs     plain, the best in turn, the best ahead, its setting in turn, and the same chosen between these by the
              target itself; interleaved repetitions
    law       from what verifying and waiting took in turn, and the hit rate (router/law.py)
    batches   in their place with `--batches`: what the target chooses by itself, router and modes (bench/batches.py)

The target has core 0 and the pool core 1. Slowed: the drafter takes so long for a token that a window takes the given
share of a verifying pass; it sleeps, so that the core is free.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any

import torch
from transformers import AutoTokenizer

from bench import batches, machine
from bench.arguments import add_sweep, add_target, ended, measuring
from bench.cells import Cell, Subject
from bench.command import listed
from bench.metrics import CellResult
from bench.ours import PROFILE_REPEAT
from bench.pair import PairEngine, paired
from bench.run import Engines, measure
from bench.stats import Ratio, paired_ratio
from bench.workload import LONGEST, Workload, read_texts
from cli.arguments import whole
from protocol.stats import MirrorStats
from router.law import Law
from targets.mirror import MirrorConfig

RESULT = machine.ROOT / "bench/results/mirror.json"
BATCHES_RESULT = RESULT.with_stem("mirror_batches")
TARGET_CORE, POOL_CORE = 0, 1
MODES = ("plain", "fixed", "ahead", "mirror", "chosen")


@dataclass(frozen=True, slots=True)
class Scene:
    """What is compared in one go."""

    batch: int
    temperature: float
    token_ms: float = 0.0


def subject_of(args: argparse.Namespace, max_batch: int) -> Subject:
    return Subject(args.target, args.drafter, torch.bfloat16, 1, max_batch, LONGEST + args.max_tokens)


def workload_of(args: argparse.Namespace) -> Workload:
    return Workload(read_texts(args.prompts, AutoTokenizer.from_pretrained(args.target)), "mixed", args.num_prompts)


def config_of(args: argparse.Namespace) -> MirrorConfig:
    return MirrorConfig(args.fan_out, args.kappa, args.exit_layer)


def cells_of(mode: str, scene: Scene, args: argparse.Namespace) -> list[Cell]:
    return [Cell(mode, scene.batch, d, k, scene.temperature) for d in args.depths for k in args.lengths]


def play(scene: Scene, workload: Workload, args: argparse.Namespace) -> dict[str, Any]:
    with paired(subject_of(args, scene.batch), config_of(args), [POOL_CORE], scene.token_ms) as engine:
        engines = Engines(engine, dict.fromkeys(MODES, engine), {engine.name: engine.version})
        swept = measure(
            engines,
            [cell for mode in ("fixed", "ahead", "mirror") for cell in cells_of(mode, scene, args)],
            workload,
            repeat=args.sweep,
            max_tokens=args.max_tokens,
        )
        turn, mirror = (max(_of(swept, modes), key=_rate).cell for modes in (("fixed",), ("ahead", "mirror")))
        same, free = (replace(mirror, mode=mode) for mode in ("fixed", "chosen"))
        plain = Cell("plain", scene.batch, temperature=scene.temperature)
        chosen = list(dict.fromkeys([plain, turn, mirror, same, free]))
        for kept in (engine.rounds, engine.stats, engine.records):
            kept.clear()
        measure(engines, [free], workload, repeat=args.learn, max_tokens=args.max_tokens)
        results = measure(engines, chosen, workload, repeat=args.pairs, max_tokens=args.max_tokens)
    return told(scene, engine, {result.cell: result for result in results}, turn, mirror)


def told(scene: Scene, engine: PairEngine, results: dict[Cell, CellResult], turn: Cell, mirror: Cell) -> dict[str, Any]:
    plain = next(cell for cell in results if cell.mode == "plain")
    same, free = (replace(mirror, mode=mode) for mode in ("fixed", "chosen"))
    named = {"plain": plain, "in turn": turn, "mirror": mirror, "mirror's setting in turn": same, "chosen": free}
    best_of_two = turn if _rate(results[turn]) >= _rate(results[plain]) else plain
    free_over = paired_ratio(results[free].tokens_per_second, results[best_of_two].tokens_per_second)
    gain = paired_ratio(results[mirror].tokens_per_second, results[turn].tokens_per_second)
    hits = hit_rates(engine, mirror)
    best, own = (law_of(engine, cell, hits["all"]) for cell in (turn, same))
    return {
        "batch": scene.batch,
        "temperature": scene.temperature,
        "token_ms": scene.token_ms,
        "in_turn": _name(turn),
        "mirror": f"{_name(mirror)} {'with' if mirror.mode == 'mirror' else 'without'} early picks",
        "chosen_over_better": _spread(free_over),
        "rates": {name: round(_rate(results[cell]), 1) for name, cell in named.items()},
        "over_in_turn": _spread(gain),
        "over_same_setting": paired_ratio(results[mirror].tokens_per_second, results[same].tokens_per_second).median,
        "over_plain": paired_ratio(results[mirror].tokens_per_second, results[plain].tokens_per_second).median,
        "tokens_per_round": {name: results[cell].mean_acceptance_length for name, cell in named.items()},
        "law_best_in_turn": _law(best),
        "law_same_setting": _law(own),
        "hits": hits,
        "hidden_on_hits": hidden(engine, mirror, own.wait_ms),
        "exposed_ms": exposed(engine, mirror),
        "identical": min(result.identical or 0.0 for result in results.values()),
    }


def law_of(engine: PairEngine, cell: Cell, hits: float) -> Law:
    rounds = [one for one in engine.rounds[cell] if one.rows and not one.num_prefill_tokens and one.draft_ms > 0]
    return Law(
        median(one.verify_ms for one in rounds),
        median(one.draft_ms for one in rounds),
        median(one.rest_ms for one in rounds),
        hits,
    )


def hit_rates(engine: PairEngine, cell: Cell) -> dict[str, float]:
    return shares(engine.stats[cell])


def shares(stats: Sequence[MirrorStats]) -> dict[str, float]:
    """Of the outcomes that branches were asked for: by source, and all."""
    by_source = {
        "full": sum(one.hits_full for one in stats),
        "runner_up": sum(one.hits_runner_up for one in stats),
        "early_exit": sum(one.hits_early_exit for one in stats),
        "rest": sum(one.hits_rest for one in stats),
    }
    num = sum(by_source.values()) + sum(one.num_misses for one in stats)
    found = {name: round(count / max(num, 1), 4) for name, count in by_source.items()}
    return found | {"all": round(sum(by_source.values()) / max(num, 1), 4)}


def exposed(engine: PairEngine, cell: Cell) -> dict[str, float]:
    """Mean ms between planning and the pass, in rounds whose windows were all at hand, and in the others."""
    records = [one for one in engine.records[cell] if any(one.lengths) and not one.num_prefill_tokens]
    waits = {True: [0.0], False: [0.0]}
    for one in records:
        waits[all(one.hits)].append(1e3 * (one.marks.drafted - one.marks.planned))
    return {"hit": round(fmean(waits[True]), 4), "miss": round(fmean(waits[False]), 4)}


def hidden(engine: PairEngine, cell: Cell, wait_ms: float) -> float:
    """Share of the wait in turn that is gone where the window was at hand."""
    return float(round(1 - exposed(engine, cell)["hit"] / wait_ms, 4))


def window_ms(like: Scene, args: argparse.Namespace, share: float, workload: Workload) -> float:
    """What a drafted token has to take so that a window of the middle length takes this share of a verifying pass."""
    length = args.lengths[len(args.lengths) // 2]
    with paired(subject_of(args, like.batch), MirrorConfig(), [POOL_CORE]) as engine:
        cell = Cell("fixed", like.batch, args.depths[0], length, like.temperature)
        measure(Engines(engine, {"fixed": engine}), [cell], workload, repeat=2, max_tokens=args.max_tokens)
    return float(share * law_of(engine, cell, 1.0).verify_ms / length)


def table(cells: Sequence[dict[str, Any]], place: dict[str, object]) -> str:
    lines = [
        "| batch | temperature | ms a token | in turn | mirror | plain, tok/s | in turn | mirror | over in turn "
        "| law | chosen over the better of in turn and off | hits (full, runner-up, early, rest) | hidden on hits |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        rates, gain, hits = cell["rates"], cell["over_in_turn"], cell["hits"]
        by_source = ", ".join(f"{hits[name]:.2f}" for name in ("full", "runner_up", "early_exit", "rest"))
        lines.append(
            f"| {cell['batch']} | {cell['temperature']:g} | {cell['token_ms']:.2f} | {cell['in_turn']} "
            f"| {cell['mirror']} | {rates['plain']:.0f} | {rates['in turn']:.0f} | {rates['mirror']:.0f} "
            f"| {_interval(gain)} "
            f"| {cell['law_best_in_turn']['speedup']:.3f} | {_interval(cell['chosen_over_better'])} "
            f"| {hits['all']:.2f} ({by_source}) "
            f"| {cell['hidden_on_hits']:.2f} |"
        )
    identical = min(cell["identical"] for cell in cells)
    lines += ["", f"Identical to the plain loop: {identical:.0%} of outputs.", machine.footer(place)]
    return "\n".join(lines) + "\n"


def _spread(ratio: Ratio) -> dict[str, float]:
    return {"median": ratio.median, "low": ratio.low, "high": ratio.high}


def _interval(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.3f} ({ratio['low']:.3f}-{ratio['high']:.3f})"


def _law(law: Law) -> dict[str, float]:
    return {
        "verify_ms": round(law.verify_ms, 3),
        "wait_ms": round(law.wait_ms, 3),
        "rest_ms": round(law.rest_ms, 3),
        "speedup": round(law.speedup, 4),
    }


def _of(results: Sequence[CellResult], modes: Sequence[str]) -> list[CellResult]:
    return [result for result in results if result.mode in modes]


def _rate(result: CellResult) -> float:
    return median(result.tokens_per_second)


def _name(cell: Cell) -> str:
    return f"{cell.depth}/{cell.length}"


def run_batches(args: argparse.Namespace) -> int:
    """bench/batches.py on the same two cores."""
    os.sched_setaffinity(0, [TARGET_CORE])
    subject = subject_of(args, max(args.batches))
    with paired(subject, config_of(args), [POOL_CORE], measured=PROFILE_REPEAT) as engine:
        return batches.run(engine, workload_of(args), args, args.out or BATCHES_RESULT)


def run(args: argparse.Namespace) -> int:
    os.sched_setaffinity(0, [TARGET_CORE])
    out = args.out or RESULT
    workload = workload_of(args)
    scenes = [Scene(batch, temperature) for batch in args.batch for temperature in args.temperatures]
    cells = []
    place = machine.describe()
    for scene in scenes:
        for share in (None, *args.slowed):
            token_ms = window_ms(scene, args, share, workload) if share else 0.0
            cells.append(play(Scene(scene.batch, scene.temperature, token_ms), workload, args))
            sys.stderr.write(table(cells[-1:], place))
            machine.save(out, {"machine": place, "cells": cells}, table(cells, place))
    sys.stdout.write(table(cells, place))
    return 0


def main() -> int:
    parser = measuring(__doc__, depths=[2, 4], lengths=[2, 3, 4, 6])
    parser.add_argument("--batch", type=listed(whole(1)), default=[1])
    parser.add_argument("--batches", type=listed(whole(1)), default=[], help="only what is chosen at each of these")
    parser.add_argument("--temperatures", type=listed(float), default=[0.0, 1.0])
    parser.add_argument("--slowed", type=listed(float), default=[], help="a window over a verifying pass")
    parser.add_argument("--fan-out", type=whole(1), default=8)
    parser.add_argument("--kappa", type=whole(0), default=2)
    parser.add_argument("--exit-layer", type=whole(0), default=None)
    parser.add_argument("--learn", type=whole(1), default=3, help="runs before, in which the target tries its modes")
    add_target(parser)
    add_sweep(parser, repeat=2)
    args = parser.parse_args()
    return ended("bench.mirror", run_batches if args.batches else run, args)


if __name__ == "__main__":
    sys.exit(main())
