"""Policies without noise: recorded drafts of real texts, replayed in the simulator.

Every prompt is decoded once with each of its tokens probed (bench/survey.py); from then on any policy can be run over
the same texts in simulated time, with the profile's costs. Two policies meet the very same tokens and confidences, and
the same clock. So a percent is a percent, which no run on a machine shows; what a machine adds is in bench/router.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import AutoTokenizer

from bench import machine
from bench.cells import Cell, Subject
from bench.command import HELD_OUT, listed
from bench.ours import DraftPoolEngine, requests
from bench.survey import Surveyor, Told
from bench.workload import LONGEST, Workload, read_texts
from cli.arguments import depth, whole
from deployments.local import complete, open_engine
from model.native.library import default_threads
from protocol.errors import DraftPoolError
from protocol.plan import DepthRule
from router.costs import CostCurves
from router.goodput import Goodput, GoodputConfig
from router.policy import Fixed, Policy
from router.simulate import SimulatedPool, SimulatedTarget, simulate
from router.simulate_acceptance import AcceptanceTable, Draft, Profile, always
from router.simulate_target import Request
from targets.engine import EngineConfig

MODELS = machine.ROOT / "demo/models"
RESULT = machine.ROOT / "bench/results/replay.json"
UNKNOWN = (False, 0.5)  # at the ends of a text
SPARE = 24  # tokens decoded beyond those that are replayed
TURNS = 24  # passes over the texts; the router learns in the first half of them


@dataclass(frozen=True, slots=True)
class Recorded:
    """A router.simulate_acceptance.Fate. told: by output position and exit, None where nothing is known."""

    exits: tuple[int, ...]
    told: Sequence[Told | None]

    def draft(self, table: AcceptanceTable, rule: DepthRule, start: int, length: int, floor: float) -> Draft:
        """What a drafter says behind its first wrong token is as sure as that one."""
        exits: list[int] = []
        sure: list[float] = []
        run, product_ = 0, 1.0
        for position in range(length):
            exit_, (right, confidence) = self._at(start + position, rule)
            if run < position:
                confidence = sure[-1]
            run += run == position and right
            exits.append(exit_)
            sure.append(confidence)
            product_ *= confidence
            if product_ <= floor and floor > 0:
                break
        return Draft(exits, sure, run)

    def probe(self, profile: Profile, start: int, stop: int, ms: float) -> tuple[list[list[bool]], list[list[float]]]:
        known = [told or (UNKNOWN,) * len(self.exits) for told in self.told[start:stop]]
        numbers = range(len(self.exits))
        return [[told[n][0] for told in known] for n in numbers], [[told[n][1] for told in known] for n in numbers]

    def _at(self, position: int, rule: DepthRule) -> tuple[int, tuple[bool, float]]:
        """The exit's number, and what it says."""
        told = self.told[position] if position < len(self.told) else None
        for exit_, threshold in zip(rule.exits, (*rule.thresholds, -1.0), strict=True):
            number = self.exits.index(exit_)
            found = told[number] if told else UNKNOWN
            if found[1] > threshold:
                break
        return number, found


@dataclass(frozen=True, slots=True)
class Group:
    """Prompts that are decoded together. prompts: their lengths."""

    prompts: tuple[int, ...]
    fates: tuple[Recorded, ...]


def record(engine: DraftPoolEngine, prompts: Sequence[tuple[int, ...]], max_tokens: int) -> Group:
    exits = engine.worker.describe().exits
    surveyor = Surveyor(exits)
    config = EngineConfig(max_batch=4, max_queue=len(prompts), incarnation=f"replay-{id(surveyor)}")
    running = open_engine(engine.model, engine.worker, surveyor, config)
    try:
        complete(running, requests(prompts, 0.0, max_tokens + SPARE))
    finally:
        running.stop()
    by_row = [surveyor.told.get((0, row), {}) for row in range(len(prompts))]
    fates = [
        Recorded(exits, [own.get(len(prompt) + at) for at in range(max_tokens)])
        for prompt, own in zip(prompts, by_row, strict=True)
    ]
    return Group(tuple(map(len, prompts)), tuple(fates))


@dataclass(frozen=True, slots=True)
class Replay:
    curves: CostCurves
    choices: GoodputConfig
    groups: tuple[Group, ...]
    max_tokens: int

    def rate(self, policy: Policy, groups: Sequence[Group]) -> float:
        """Tokens per second after the last prompt's first token, as bench/metrics.py counts them."""
        tokens, ms = 0, 0.0
        for group in groups:
            if isinstance(policy, Goodput):
                policy.restart()
            asked = [Request(0.0, prompt, self.max_tokens, row) for row, prompt in enumerate(group.prompts)]
            target = SimulatedTarget(
                self.curves.name,
                self.curves,
                lambda: policy,
                always(AcceptanceTable(self.choices.exits, (((0.5,),),) * len(self.choices.exits))),
                asked,
                max_batch=len(asked),
                shares_device=True,
                fate=lambda request, fates=group.fates: fates[request.seed],  # type: ignore[misc]
            )
            report = simulate([target], SimulatedPool()).targets[0]
            tokens += report.num_decoded
            ms += max(one.last_ms for one in report.served) - max(one.first_ms for one in report.served)
        return 1e3 * tokens / ms

    def goodput(self) -> float:
        """Of a router that has learned from half of the turns: the mean of the others, in either order."""
        router = Goodput(self.curves, self.choices)
        turns = [self.rate(router, self.groups if turn % 2 else self.groups[::-1]) for turn in range(TURNS)]
        return fmean(turns[TURNS // 2 :])


def replays(target: Path, args: argparse.Namespace) -> Iterator[tuple[int, Replay]]:
    subject = Subject(
        target, args.drafter, torch.bfloat16, args.threads, max(args.batch), LONGEST + args.max_tokens + SPARE
    )
    texts = read_texts(args.prompts, AutoTokenizer.from_pretrained(target))
    engine = DraftPoolEngine(subject)
    engine.open()
    try:
        curves, choices = engine.curves(), engine.choices()
        for batch in args.batch:
            workload = Workload(texts, "mixed", max(batch, args.num_prompts))
            groups = [record(engine, prompts, args.max_tokens) for prompts in workload.groups(Cell("plain", batch))]
            yield batch, Replay(curves, choices, tuple(groups), args.max_tokens)
    finally:
        engine.close()


def compared(target: str, batch: int, replay: Replay, args: argparse.Namespace) -> dict[str, Any]:
    fixed = {
        f"{own}/{length}": replay.rate(Fixed(DepthRule((own,)), length), replay.groups)
        for own, length in product(args.depths, args.lengths)
    }
    best = max(fixed, key=lambda name: fixed[name])
    ours = replay.goodput()
    sys.stderr.write(f"{target}, batch {batch}: {ours / fixed[best]:.3f} of {best}\n")
    rates = {name: round(rate, 1) for name, rate in fixed.items()}
    return {"target": target, "batch": batch, "best": best, "fixed": rates, "goodput": round(ours, 1)} | {
        "share_of_best": round(ours / fixed[best], 4)
    }


def table(cells: Sequence[dict[str, Any]], place: dict[str, Any]) -> str:
    lines = ["| target | batch | best fixed | tok/s | router, tok/s | over best fixed |", "|---|---|---|---|---|---|"]
    for cell in cells:
        lines.append(
            f"| {cell['target']} | {cell['batch']} | {cell['best']} | {cell['fixed'][cell['best']]:.0f} "
            f"| {cell['goodput']:.0f} | {cell['share_of_best']:.3f} |"
        )
    shares = [cell["share_of_best"] for cell in cells]
    lines += [
        "",
        f"In simulated time, of the best fixed setting: mean {fmean(shares):.3f}, least {min(shares):.3f}.",
        machine.footer(place),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=listed(Path), default=[MODELS / "large", MODELS / "small"])
    parser.add_argument("--drafter", type=Path, default=MODELS / "drafter")
    parser.add_argument("--batch", type=listed(whole(1)), default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--depths", type=listed(depth), default=[2, 4, 6])
    parser.add_argument("--lengths", type=listed(whole(1, 64)), default=[1, 2, 3, 4, 5, 6, 8])
    parser.add_argument("--num-prompts", type=whole(1), default=8)
    parser.add_argument("--max-tokens", type=whole(2), default=128)
    parser.add_argument("--threads", type=whole(1), default=default_threads())
    parser.add_argument("--prompts", type=Path, default=HELD_OUT)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    try:
        cells = [
            compared(target.name, batch, replay, args)
            for target in args.targets
            for batch, replay in replays(target, args)
        ]
    except DraftPoolError as error:
        sys.stderr.write(f"bench.replay: {error}\n")
        return 2
    place = machine.describe()
    machine.save(args.out, {"machine": place, "cells": cells}, table(cells, place))
    sys.stdout.write(table(cells, place))
    return 0


if __name__ == "__main__":
    sys.exit(main())
