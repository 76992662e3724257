"""Exactness: the speculative loop's tokens against the plain loop's, for every setting, in fp32 and in bf16.

A cell is one combination of batch, depth, length, temperature and memory. Every prompt of a cell is one case:
its tokens equal the plain loop's (batch 1, one token a step), or they are a fault. Where steps are not deterministic
(plain torch), a first difference between two scores within 1e-4 of each other is listed as a tie. In fp32 at
temperature 0 the plain loop itself is compared with transformers' generate. Cells are appended to a file as they
finish, so an interrupted run goes on.

    serial    draft and verify in turn
    overlap   the pool works while the target verifies, in every mode there is (protocol/plan.py), over a good link and
              over one that delays, reorders, doubles, loses and forges, with a pool that dies in mid-branch
"""

from __future__ import annotations

import argparse
import json
import operator
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench import machine
from bench.differences import TIE, Difference, first_difference, requests, score_gap
from bench.exactness_cells import IN_TURN, MATRICES, TEMPERATURES, WAYS, Cell
from bench.faulty import Faults, FaultyClient
from bench.prompts import Prompt, mixed
from bench.random_policy import RandomPolicy, random_wish
from deployments.local import complete, draft_policy
from drafters.client import LocalDraftClient
from drafters.limits import PoolLimits
from drafters.nested import NestedDrafter, load_nested
from drafters.worker import DraftWorker
from model.execution import Execution
from model.native.library import default_threads
from protocol.branch import MirrorClient
from protocol.request import GenerateRequest
from router.policy import Fixed, Policy
from targets import plain
from targets.ahead import AheadConfig
from targets.engine import Engine, EngineConfig
from targets.model import TargetModel, load_target

MODELS = machine.ROOT / "demo/models"
RESULTS = machine.ROOT / "bench/results/exactness"
FAULTS = Faults(dies=0.05)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class CellResult:
    """overlapped: proposals that were at hand. deaths: of the pool."""

    cell: Cell
    num_cases: int
    num_tokens: int
    drafted: int
    accepted: int
    preempted: int
    seconds: float
    ties: list[Difference] = field(default_factory=list)
    faults: list[Difference] = field(default_factory=list)
    overlapped: int = 0
    deaths: int = 0


@dataclass(frozen=True, slots=True)
class Precision:
    dtype: torch.dtype = torch.float32
    execution: Execution = Execution.AUTO

    @property
    def name(self) -> str:
        return f"{'bf16' if self.dtype == torch.bfloat16 else 'fp32'}.{self.execution}"


FP32 = Precision()


@dataclass(frozen=True, slots=True)
class Subject:
    """What is tested: a target, a drafter, and the plain loop's text of every request by temperature."""

    target: Path
    drafter: NestedDrafter
    prompts: Sequence[Prompt]
    max_tokens: int
    precision: Precision
    oracle: TargetModel
    texts: dict[float, list[list[int]]]


def prepare(
    target: Path,
    drafter: Path,
    prompts: Sequence[Prompt],
    max_tokens: int,
    precision: Precision = FP32,
    temperatures: Iterable[float] = TEMPERATURES,
) -> Subject:
    """Runs the plain loop over every prompt."""
    dtype, execution = precision.dtype, precision.execution
    oracle = load_target(target, dtype=dtype, num_positions=1024, page_size=16, execution=execution)
    nested = load_nested(drafter, dtype=dtype, num_positions=16, page_size=16, execution=execution)
    texts = {
        temperature: [
            plain.generate(oracle, request).tokens[len(request.prompt_ids) :]
            for request in tqdm(requests(prompts, temperature, max_tokens), f"plain loop, temperature {temperature}")
        ]
        for temperature in temperatures
    }
    return Subject(target, nested, prompts, max_tokens, precision, oracle, texts)


def run_cell(subject: Subject, cell: Cell) -> CellResult:
    model = subject.oracle.with_kv(cell.kv_positions // cell.page_size, cell.page_size)
    drafter = subject.drafter.with_kv(pool_pages(subject, cell), cell.page_size)
    worker = DraftWorker(drafter, PoolLimits(max_rows=cell.batch), time.monotonic)
    config = EngineConfig(max_batch=cell.batch, max_queue=len(subject.prompts))
    wanted = requests(subject.prompts, cell.temperature, subject.max_tokens)
    policy = policy_of(worker, cell)
    if cell.depth == "random":
        rng, exits = Random(cell.batch), worker.describe().exits
        wanted = [replace(request, speculation=random_wish(rng, exits, cell.length)) for request in wanted]
    client = client_of(worker, config.incarnation, cell)
    modes = WAYS[cell.way]
    engine = Engine(model, policy, client, config, AheadConfig(modes) if modes else None)
    engine.start()
    start = time.perf_counter()
    try:
        got = [completion.token_ids for completion in complete(engine, wanted)]
    finally:
        engine.stop()
    stats = engine.stats()
    assert stats.num_free_pages == stats.num_pages, "pages leaked"
    differences = list(_differences(subject, cell.temperature, wanted, got))
    tie = -1.0 if model.decoder.is_deterministic else TIE
    return CellResult(
        cell=cell,
        num_cases=len(wanted),
        num_tokens=sum(map(len, got)),
        drafted=stats.num_proposed,
        accepted=stats.num_accepted,
        preempted=stats.num_preempted,
        seconds=round(time.perf_counter() - start, 2),
        ties=[d for d in differences if d.gap <= tie],
        faults=[d for d in differences if d.gap > tie],
        overlapped=stats.num_hits,
        deaths=client.num_deaths if isinstance(client, FaultyClient) else 0,
    )


def pool_pages(subject: Subject, cell: Cell) -> int:
    """For every sequence of the batch to its end, and three times as much again where branches are drafted ahead."""
    longest = max(len(prompt.token_ids) for prompt in subject.prompts) + subject.max_tokens + cell.length
    pages = cell.batch * -(-longest // cell.page_size)
    return pages if cell.way == IN_TURN else 4 * pages


def client_of(worker: DraftWorker, incarnation: str, cell: Cell) -> MirrorClient:
    def connect() -> LocalDraftClient:
        """To a pool that knows nothing of us."""
        worker.drop(incarnation)
        return LocalDraftClient(worker, incarnation)

    return FaultyClient(connect, seed=cell.batch + cell.length, faults=FAULTS) if cell.faulty else connect()


def policy_of(worker: DraftWorker, cell: Cell) -> Policy:
    exits = worker.describe().exits
    if cell.depth == "random":
        return RandomPolicy(exits, cell.length, Random(cell.length))
    policy = draft_policy(worker, cell.depth, cell.length)
    modes = WAYS[cell.way]
    return replace(policy, mode=modes[-1]) if modes and isinstance(policy, Fixed) else policy


def _differences(
    subject: Subject, temperature: float, wanted: Sequence[GenerateRequest], got: Sequence[tuple[int, ...]]
) -> Iterator[Difference]:
    for request, text, tokens in zip(wanted, subject.texts[temperature], got, strict=True):
        index = first_difference(text, tokens)
        if index is not None:
            yield Difference(request.request_id, index, score_gap(subject.oracle, request, text[:index]))


def differs_from_generate(subject: Subject) -> list[Difference]:
    """The plain loop at temperature 0 against transformers' greedy generate."""
    reference: Any = AutoModelForCausalLM.from_pretrained(subject.target, dtype=torch.float32)
    got = []
    for prompt in tqdm(subject.prompts, "transformers generate"):
        ids = torch.tensor([prompt.token_ids])
        settings: dict[str, Any] = {
            "max_new_tokens": subject.max_tokens,
            "min_new_tokens": subject.max_tokens,
            "do_sample": False,
            "eos_token_id": -1,
            "pad_token_id": 0,
        }
        out: Any = reference.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        got.append(tuple(out[0, ids.shape[1] :].tolist()))
    return list(_differences(subject, 0.0, requests(subject.prompts, 0.0, subject.max_tokens), got))


def shares_of_identical_texts(subject: Subject, drafter: Path) -> dict[str, float]:
    """By temperature: how many prompts get the same text from the plain loop in plain torch."""
    precision = Precision(subject.precision.dtype, Execution.EAGER)
    eager = prepare(subject.target, drafter, subject.prompts, subject.max_tokens, precision)
    return {
        str(temperature): sum(map(operator.eq, texts, eager.texts[temperature])) / len(texts)
        for temperature, texts in subject.texts.items()
    }


def run_matrix(subject: Subject, cells: Sequence[Cell], path: Path) -> list[dict[str, object]]:
    """Every cell's result as stored, running those that the file lacks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {} if not path.exists() else {Cell(**r["cell"]): r for r in map(json.loads, path.read_text().splitlines())}
    for cell in tqdm(cells, "cells"):
        if cell not in done:
            done[cell] = json.loads(json.dumps(asdict(run_cell(subject, cell))))
            with path.open("a") as file:
                file.write(json.dumps(done[cell]) + "\n")
    return [done[cell] for cell in cells]


def summarise(results: Sequence[dict[str, object]]) -> dict[str, object]:
    def total(name: str) -> int:
        return sum(int(str(result.get(name, 0))) for result in results)

    def found(name: str) -> list[object]:
        return [{"cell": result["cell"], name: result[name]} for result in results if result[name]]

    vacuous = [
        result["cell"]
        for result in results
        if result["drafted"] and not 0 < int(str(result["accepted"])) < int(str(result["drafted"]))
    ]
    counted = ("num_cases", "num_tokens", "drafted", "accepted", "preempted", "overlapped", "deaths")
    return {
        "num_cells": len(results),
        **{name: total(name) for name in counted},
        "cells_without_accepted_and_rejected": vacuous,
        "ties": found("ties"),
        "faults": found("faults"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path, default=MODELS / "large")
    parser.add_argument("--drafter", type=Path, default=MODELS / "drafter")
    parser.add_argument("--matrix", choices=list(MATRICES), default="serial", help="default: %(default)s")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32")
    parser.add_argument("--execution", choices=[*Execution], default=Execution.AUTO)
    parser.add_argument("--skip-eager", action="store_true", help="do not compare the plain loop with plain torch")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--shard", default="0/1", help="I/N: only every N-th cell from the I-th, and no summary")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    prompts = mixed(AutoTokenizer.from_pretrained(args.target), args.prompts, args.prompt_tokens)
    precision = Precision(DTYPES[args.dtype], Execution(args.execution))
    subject = prepare(args.target, args.drafter, prompts, args.max_tokens, precision)
    shard, num_shards = map(int, args.shard.split("/"))
    cells, kind = MATRICES[args.matrix](), "" if args.matrix == "serial" else f".{args.matrix}"
    name = f"{args.target.name}.{precision.name}{kind}"
    cells_path = args.out / f"{name}.cells.jsonl"
    if num_shards > 1:
        run_matrix(subject, cells[shard::num_shards], cells_path)
        return 0
    in_fp32 = precision.dtype == torch.float32
    against_generate = differs_from_generate(subject) if in_fp32 else []
    summary = summarise(run_matrix(subject, cells, cells_path))
    report = {
        "machine": machine.describe(),
        "target": args.target.name,
        "drafter": args.drafter.name,
        "num_prompts": len(prompts),
        "prompt_tokens": args.prompt_tokens,
        "max_tokens": args.max_tokens,
        "dtype": args.dtype,
        "deterministic": subject.oracle.decoder.is_deterministic,
        "plain_loop_against_generate": [asdict(difference) for difference in against_generate] if in_fp32 else None,
        "plain_loop_as_in_eager": shares_of_identical_texts(subject, args.drafter) if not args.skip_eager else None,
        **summary,
    }
    (args.out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    sys.stdout.write(json.dumps({k: v for k, v in report.items() if k != "machine"}, indent=1) + "\n")
    beyond_ties = [difference for difference in against_generate if difference.gap > TIE]
    return 1 if summary["faults"] or beyond_ties else 0


if __name__ == "__main__":
    sys.exit(main())
