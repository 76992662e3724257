"""Running the cells of an exactness matrix: every prompt of a cell is one case, its tokens beside the plain loop's."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from bench.exactness.cells import IN_TURN, RANDOM, TEMPERATURES, WAYS, ExactnessCell
from bench.exactness.differences import TIE, Difference, first_difference, score_gap
from bench.exactness.faulty import FaultyClient, LinkFaults
from bench.exactness.random_policy import RandomPolicy, random_wish
from bench.ours import requests
from bench.policies import Prices, adaptive
from deployments.local import known_depth
from drafters.client import LocalDraftClient
from drafters.limits import PoolLimits
from drafters.nested import NestedDrafter, load_nested
from drafters.worker import DraftWorker
from model.execution import Execution
from protocol.branch import AheadClient
from protocol.request import GenerateRequest
from router.policy import Fixed, Policy
from targets import plain
from targets.complete import complete
from targets.engine import Engine, EngineConfig
from targets.model import TargetModel, load_target

FAULTS = LinkFaults(dies=0.05)


@dataclass(frozen=True, slots=True)
class ExactnessResult:
    """at_hand: proposals that had been drafted ahead. deaths: of the pool."""

    cell: ExactnessCell
    num_cases: int
    num_tokens: int
    drafted: int
    accepted: int
    preempted: int
    seconds: float
    ties: list[Difference] = field(default_factory=list)
    faults: list[Difference] = field(default_factory=list)
    at_hand: int = 0
    deaths: int = 0


@dataclass(frozen=True, slots=True)
class Precision:
    dtype: torch.dtype = torch.float32
    execution: Execution = Execution.AUTO

    @property
    def name(self) -> str:
        return f"{'bf16' if self.dtype == torch.bfloat16 else 'fp32'}.{self.execution}"


@dataclass(frozen=True, slots=True)
class ExactnessSubject:
    """What is tested: a target, a drafter, and the plain loop's text of every request by temperature."""

    target: Path
    drafter: NestedDrafter
    prompts: Sequence[tuple[int, ...]]
    max_tokens: int
    precision: Precision
    oracle: TargetModel
    texts: dict[float, list[list[int]]]


def prepare(
    target: Path,
    drafter: Path,
    prompts: Sequence[tuple[int, ...]],
    max_tokens: int,
    precision: Precision,
) -> ExactnessSubject:
    """Runs the plain loop over every prompt."""
    dtype, execution = precision.dtype, precision.execution
    oracle = load_target(target, dtype=dtype, num_positions=1024, page_size=16, execution=execution)
    nested = load_nested(drafter, dtype=dtype, num_positions=16, page_size=16, execution=execution)
    texts = {
        temperature: [
            plain.generate(oracle, request).tokens[len(request.prompt_ids) :]
            for request in tqdm(requests(prompts, temperature, max_tokens), f"plain loop, temperature {temperature}")
        ]
        for temperature in TEMPERATURES
    }
    return ExactnessSubject(target, nested, prompts, max_tokens, precision, oracle, texts)


def run_cell(subject: ExactnessSubject, cell: ExactnessCell) -> ExactnessResult:
    model = subject.oracle.with_kv(cell.kv_positions // cell.page_size, cell.page_size)
    drafter = subject.drafter.with_kv(pool_pages(subject, cell), cell.page_size)
    worker = DraftWorker(drafter, PoolLimits(max_rows=cell.batch), time.monotonic)
    config = EngineConfig(max_batch=cell.batch, max_queue=len(subject.prompts))
    wanted = requests(subject.prompts, cell.temperature, subject.max_tokens)
    policy = policy_of(worker, cell)
    if cell.depth == RANDOM:
        rng, exits = Random(cell.batch), worker.describe().exits
        wanted = [replace(request, speculation=random_wish(rng, exits, cell.length)) for request in wanted]
    client = client_of(worker, config.incarnation, cell)
    start = time.perf_counter()
    with Engine(model, policy, client, config, cell.way != IN_TURN) as engine:
        got = [completion.token_ids for completion in complete(engine, wanted)]
    stats = engine.stats()
    assert stats.num_free_pages == stats.num_pages, "pages leaked"
    differences = list(_differences(subject, cell.temperature, wanted, got))
    tie = -1.0 if model.decoder.is_deterministic else TIE
    return ExactnessResult(
        cell=cell,
        num_cases=len(wanted),
        num_tokens=sum(map(len, got)),
        drafted=stats.num_proposed,
        accepted=stats.num_accepted,
        preempted=stats.num_preempted,
        seconds=round(time.perf_counter() - start, 2),
        ties=[d for d in differences if d.gap <= tie],
        faults=[d for d in differences if d.gap > tie],
        at_hand=stats.num_hits,
        deaths=client.num_deaths if isinstance(client, FaultyClient) else 0,
    )


def pool_pages(subject: ExactnessSubject, cell: ExactnessCell) -> int:
    """For every sequence of the batch to its end, and as much again where branches are drafted ahead."""
    longest = max(len(prompt) for prompt in subject.prompts) + subject.max_tokens + cell.length
    pages = cell.batch * -(-longest // cell.page_size)
    return pages if cell.way == IN_TURN else 2 * pages


def client_of(worker: DraftWorker, incarnation: str, cell: ExactnessCell) -> AheadClient:
    def connect() -> LocalDraftClient:
        """To a pool that knows nothing of us."""
        worker.drop(incarnation)
        return LocalDraftClient(worker, incarnation)

    return FaultyClient(connect, seed=cell.batch + cell.length, faults=FAULTS) if cell.faulty else connect()


def policy_of(worker: DraftWorker, cell: ExactnessCell) -> Policy:
    exits = worker.describe().exits
    if isinstance(cell.depth, int):
        return Fixed(known_depth(exits, cell.depth), cell.length, WAYS[cell.way][-1])
    if cell.depth == RANDOM:
        return RandomPolicy(exits, cell.length, Random(cell.length))
    return adaptive(cell.depth, Prices().curves(exits), exits, cell.batch, cell.length)


def _differences(
    subject: ExactnessSubject, temperature: float, wanted: Sequence[GenerateRequest], got: Sequence[tuple[int, ...]]
) -> Iterator[Difference]:
    for request, text, tokens in zip(wanted, subject.texts[temperature], got, strict=True):
        index = first_difference(text, tokens)
        if index is not None:
            yield Difference(request.request_id, index, score_gap(subject.oracle, request, text[:index]))


def differs_from_generate(subject: ExactnessSubject) -> list[Difference]:
    """The plain loop at temperature 0 against transformers' greedy generate."""
    reference: Any = AutoModelForCausalLM.from_pretrained(subject.target, dtype=torch.float32)
    got = []
    for prompt in tqdm(subject.prompts, "transformers generate"):
        ids = torch.tensor([prompt])
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
