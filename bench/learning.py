"""How fast the router learns: after a switch of the text, and in its first rounds with and without full information.

The truth of a workload is measured first (bench/survey.py). From it and the profiled costs follows what any plan is
worth, so plans are judged without the noise of clocks: by the goodput that they would have, over that of the best one.

    switch       code at temperature 0, then noise (random prompts, sampled hot), and back again
    information  regret over the first rounds of a fresh router, in tokens, against an oracle that knows the truth
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import fmean, median
from typing import Any

import torch
from transformers import AutoTokenizer

from bench import machine
from bench.cells import Subject
from bench.command import HELD_OUT
from bench.ours import DraftPoolEngine, requests
from bench.survey import Judge, Stop, Survey, Surveyor
from bench.workload import LONGEST, Workload, read_texts
from cli.arguments import whole
from deployments.local import complete
from drafters.client import LocalDraftClient
from model.native.library import default_threads
from protocol.draft import DraftBlock
from protocol.outcome import RoundOutcome
from protocol.plan import BatchView, DepthRule, Plan
from protocol.request import GenerateRequest
from router.costs import CostCurves
from router.goodput import Goodput, GoodputConfig
from router.policy import Policy
from router.predict import Predictor
from router.tables import tables
from targets.engine import Engine, EngineConfig

RESULT = machine.ROOT / "bench/results/learning.json"
WITHIN = 0.95  # of the best arm's goodput
LASTING = 3  # rounds in a row that a plan has to stay there
HOT = 1.2  # temperature of noise
CONTEXT = 256.0


@dataclass(frozen=True, slots=True)
class Played:
    """A round's plan. rule: number of its depth rule, None for plain decoding."""

    rule: int | None
    lengths: tuple[int, ...]
    stop: Stop


@dataclass(slots=True)
class Recorded:
    """A policy whose plans and outcomes are kept."""

    policy: Goodput
    plans: list[Played] = field(default_factory=list)
    outcomes: list[RoundOutcome] = field(default_factory=list)

    def opening(self) -> DepthRule | None:
        return self.policy.opening()

    def plan(self, view: BatchView) -> Plan:
        plan = self.policy.plan(view)
        rule = self.policy.arm.rule if self.policy.arm and any(plan.lengths) else None
        self.plans.append(Played(rule, plan.lengths, Stop(plan.floor, self.policy.kept)))
        return plan

    def prune(self, plan: Plan, drafts: Sequence[DraftBlock | None]) -> Sequence[int]:
        return self.policy.prune(plan, drafts)

    def observe(self, outcome: RoundOutcome) -> None:
        if outcome.rows:
            self.outcomes.append(outcome)
        self.policy.observe(outcome)


class Bench:
    """One target and its drafter in this process, and their costs."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.subject = Subject(
            args.target, args.drafter, torch.bfloat16, args.threads, max(args.batch), LONGEST + args.max_tokens
        )
        self.engine = DraftPoolEngine(self.subject)
        self.engine.open()
        self.curves: CostCurves = self.engine.curves()
        self.choices = self.engine.choices()
        tokenizer = AutoTokenizer.from_pretrained(args.target)
        self.workload = Workload(read_texts(HELD_OUT, tokenizer), "equal", 64)
        self._runs = 0

    def fresh(self, probe_share: float = 0.01) -> Goodput:
        own = self.choices
        config = GoodputConfig(own.rules, own.exits, own.length, own.max_rows, probe_share=probe_share)
        return Goodput(self.curves, config)

    def judge(self, name: str, batch: int) -> Judge:
        own = self.choices
        surveyor = Surveyor(own.exits)
        for turn in range(self.args.survey):
            surveyor.next_run()
            self.run(surveyor, self.prompts(name, batch, seed=1000 + turn))
        predictor = Predictor(tables(self.curves, own.rules, own.length, own.max_rows))
        return Judge(predictor, Survey(surveyor.runs(), len(own.exits), own.length))

    def prompts(self, name: str, batch: int, seed: int) -> list[GenerateRequest]:
        rng = Random(seed)
        if name == "code":
            texts = self.workload.prompts("", 64)
            return requests(rng.sample(texts, batch), 0.0, self.args.max_tokens)
        vocab = self.engine.model.decoder.config.vocab_size
        noise = [tuple(rng.randrange(vocab) for _ in range(64)) for _ in range(batch)]
        return requests(noise, HOT, self.args.max_tokens)

    def run(self, policy: Policy, asked: Sequence[GenerateRequest]) -> None:
        self._runs += 1
        name = f"learning-{self._runs}"
        client = LocalDraftClient(self.engine.worker, name)
        engine = Engine(self.engine.model, policy, client, EngineConfig(max_batch=len(asked), incarnation=name))
        engine.start()
        try:
            complete(engine, asked)
        finally:
            engine.stop()


def rounds_until_good(judge: Judge, plans: Sequence[Played], batch: int) -> int:
    """Rounds before the first of LASTING plans in a row that are within reach of the best; all of them if none is."""
    full = [plan for plan in plans if len(plan.lengths) == batch]
    reach = WITHIN * judge.best(batch)
    good = [judge.worth(plan.rule, plan.lengths, plan.stop) >= reach for plan in full]
    return next((i for i in range(len(good)) if all(good[i : i + LASTING])), len(good))


def switches(bench: Bench, batch: int) -> dict[str, Any]:
    judges = {name: bench.judge(name, batch) for name in ("code", "noise")}
    recorded = Recorded(bench.fresh())
    for turn in range(4):
        bench.run(recorded, bench.prompts("code", batch, seed=turn))
        recorded.policy.restart()
    rounds: dict[str, list[int]] = {"noise": [], "code": []}
    for turn in range(bench.args.switches):
        for name in ("noise", "code"):
            recorded.plans.clear()
            bench.run(recorded, bench.prompts(name, batch, seed=100 + turn))
            recorded.policy.restart()
            rounds[name].append(rounds_until_good(judges[name], recorded.plans, batch))
    told: dict[str, Any] = {
        name: {
            "rounds_until_within_5_percent": rounds[name],
            "median": median(rounds[name]),
            "best_goodput": round(judges[name].best(batch), 1),
            "off_goodput": round(judges[name].worth(None, [0] * batch, Stop()), 1),
            "acceptance": [round(judges[name].survey.hazard(number), 3) for number in range(len(bench.choices.exits))],
        }
        for name in rounds
    }
    sys.stderr.write(f"batch {batch}: to noise {told['noise']['median']}, back {told['code']['median']} rounds\n")
    return {"batch": batch, "asked": 60 if batch == 1 else 20} | told


def regret(judge: Judge, recorded: Recorded, batch: int, rounds: int) -> float:
    """Tokens that the oracle's goodput would have given in the profiled time of these rounds, less those committed."""
    lost = 0.0
    predictor = judge.predictor
    for plan, outcome in list(zip(recorded.plans, recorded.outcomes, strict=True))[:rounds]:
        drafted = [len(row.exits) for row in outcome.rows]
        draft_ms = predictor.draft_ms(plan.rule, drafted) if plan.rule is not None else 0.0
        verified = len(drafted) + sum(row.num_verified for row in outcome.rows)
        verify_ms = predictor.verify_ms(len(drafted), verified, CONTEXT)
        probe_ms = max(outcome.draft_ms - draft_ms, 0.0) if any(row.probe for row in outcome.rows) else 0.0
        ms = draft_ms + verify_ms + predictor.other_ms(len(drafted), drafts=any(drafted)) + probe_ms
        lost += judge.best(batch) * ms / 1e3 - sum(1 + row.accepted for row in outcome.rows)
    return lost


def information(bench: Bench, batch: int) -> dict[str, Any]:
    judge = bench.judge("code", batch)
    lost: dict[str, list[float]] = {"with": [], "without": []}
    for seed in range(bench.args.seeds):
        for name, share in (("with", 0.01), ("without", 0.0)):
            recorded = Recorded(bench.fresh(share))
            turn = 0
            while len(recorded.outcomes) < bench.args.rounds:
                bench.run(recorded, bench.prompts("code", batch, seed=1000 * seed + turn))
                recorded.policy.restart()
                turn += 1
            lost[name].append(regret(judge, recorded, batch, bench.args.rounds))
    better = sum(a < b for a, b in zip(lost["with"], lost["without"], strict=True))
    sys.stderr.write(f"batch {batch}: regret {fmean(lost['with']):.1f} with, {fmean(lost['without']):.1f} without\n")
    return {
        "batch": batch,
        "rounds": bench.args.rounds,
        "regret_tokens": {name: [round(value, 1) for value in values] for name, values in lost.items()},
        "mean": {name: round(fmean(values), 2) for name, values in lost.items()},
        "better_seeds": better,
        "oracle_tokens_per_second": round(judge.best(batch), 1),
    }


def table(report: dict[str, Any]) -> str:
    lines = [
        "| batch | switch | rounds until within 5 %, median | asked | best, tok/s | off, tok/s | acceptance by exit |",
        "|---|---|---|---|---|---|---|",
    ]
    for told in report["switches"]:
        for name, before in (("noise", "code"), ("code", "noise")):
            own = told[name]
            lines.append(
                f"| {told['batch']} | {before} to {name} | {own['median']:g} | {told['asked']} "
                f"| {own['best_goodput']:.0f} | {own['off_goodput']:.0f} | {', '.join(map(str, own['acceptance']))} |"
            )
    lines += ["", "| batch | regret with probes, tokens | without | seeds that are better with |", "|---|---|---|---|"]
    for told in report["information"]:
        seeds = len(told["regret_tokens"]["with"])
        mean = told["mean"]
        lines.append(
            f"| {told['batch']} | {mean['with']:.1f} | {mean['without']:.1f} | {told['better_seeds']} of {seeds} |"
        )
    lines += ["", f"{report['target']}; {machine.footer(report['machine'])}"]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = machine.ROOT / "demo/models"
    parser.add_argument("--target", type=Path, default=models / "large")
    parser.add_argument("--drafter", type=Path, default=models / "drafter")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--switches", type=whole(1), default=20)
    parser.add_argument("--seeds", type=whole(1), default=30)
    parser.add_argument("--rounds", type=whole(1), default=200)
    parser.add_argument("--survey", type=whole(1), default=8, help="runs that the truth is measured in")
    parser.add_argument("--max-tokens", type=whole(2), default=256)
    parser.add_argument("--threads", type=whole(1), default=default_threads())
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    bench = Bench(args)
    report = {
        "machine": machine.describe(),
        "target": args.target.name,
        "switches": [switches(bench, batch) for batch in args.batch],
        "information": [information(bench, batch) for batch in args.batch],
    }
    machine.save(args.out, report, table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
