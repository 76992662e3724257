"""Question: are the speculative loop's tokens those of the plain loop, for every setting, in fp32 and in bf16?

A cell is one combination of batch, depth, length, temperature and memory. Every prompt of a cell is one case:
its tokens equal the plain loop's (batch 1, one token a step), or they are a fault. Where steps are not deterministic
(plain torch), a first difference between two scores within 1e-4 of each other is listed as a tie. In fp32 at
temperature 0 the plain loop itself is compared with transformers' generate. Cells are appended to a file as they
finish, so an interrupted run goes on.

    in_turn   draft and verify, one after the other
    ahead     the pool drafts while the target verifies, in every mode, over a good link and over one that delays,
              reorders, doubles, loses and forges, with a pool that dies in mid-branch
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from bench import machine
from bench.arguments import MODELS, add_target, add_threads, given, plain_parser
from bench.exactness.cells import MATRICES, ExactnessCell
from bench.exactness.differences import TIE
from bench.exactness.runs import (
    ExactnessSubject,
    Precision,
    differs_from_generate,
    prepare,
    run_cell,
)
from bench.workload import code_and_questions
from deployments.process import DTYPES
from model.execution import Execution

COUNTED = ("num_cases", "num_tokens", "drafted", "accepted", "preempted", "at_hand", "deaths")


def run_matrix(subject: ExactnessSubject, cells: Sequence[ExactnessCell], path: Path) -> list[dict[str, Any]]:
    """Every cell's result as stored, running those that the file lacks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = map(json.loads, path.read_text().splitlines()) if path.exists() else []
    done = {ExactnessCell(**result["cell"]): result for result in stored}
    for cell in tqdm(cells, "cells"):
        if cell not in done:
            done[cell] = json.loads(json.dumps(asdict(run_cell(subject, cell))))
            with path.open("a") as file:
                file.write(json.dumps(done[cell]) + "\n")
    return [done[cell] for cell in cells]


def summarise(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def found(name: str) -> list[object]:
        return [{"cell": result["cell"], name: result[name]} for result in results if result[name]]

    vacuous = [one["cell"] for one in results if one["drafted"] and not 0 < one["accepted"] < one["drafted"]]
    return {
        "num_cells": len(results),
        **{name: sum(result[name] for result in results) for name in COUNTED},
        "cells_without_accepted_and_rejected": vacuous,
        "ties": found("ties"),
        "faults": found("faults"),
    }


def report(subject: ExactnessSubject, args: Namespace, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    against = differs_from_generate(subject) if subject.precision.dtype == torch.float32 else None
    return {
        "machine": machine.describe(),
        "target": args.target.name,
        "drafter": args.drafter.name,
        **given(args, "prompts", "prompt_tokens", "max_tokens", "dtype"),
        "deterministic": subject.oracle.decoder.is_deterministic,
        "plain_loop_against_generate": None if against is None else [asdict(difference) for difference in against],
        **summarise(results),
    }


def run(args: Namespace) -> int:
    torch.set_num_threads(args.threads)
    prompts = code_and_questions(AutoTokenizer.from_pretrained(args.target), args.prompts, args.prompt_tokens)
    precision = Precision(DTYPES[args.dtype], Execution(args.execution))
    subject = prepare(args.target, args.drafter, prompts, args.max_tokens, precision)
    kind = "" if args.matrix == "in_turn" else f".{args.matrix}"
    name = f"{args.target.name}.{precision.name}{kind}"
    results = run_matrix(subject, MATRICES[args.matrix](), args.out / f"{name}.cells.jsonl")
    summary = report(subject, args, results)
    (args.out / f"{name}.json").write_text(json.dumps(summary, indent=1) + "\n")
    sys.stdout.write(json.dumps({key: value for key, value in summary.items() if key != "machine"}, indent=1) + "\n")
    beyond_ties = [one for one in summary["plain_loop_against_generate"] or [] if one["gap"] > TIE]
    return 1 if summary["faults"] or beyond_ties else 0


def arguments() -> ArgumentParser:
    parser = plain_parser(__doc__, "exactness")
    add = parser.add_argument
    add_target(parser)
    add("--drafter", type=Path, default=MODELS / "drafter")
    add("--matrix", choices=list(MATRICES), default="in_turn", help="default: %(default)s")
    add("--prompts", type=int, default=64)
    add("--prompt-tokens", type=int, default=256)
    add("--max-tokens", type=int, default=64)
    add("--dtype", choices=sorted(DTYPES), default="fp32")
    add("--execution", choices=[*Execution], default=Execution.AUTO)
    add_threads(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run(arguments().parse_args()))
