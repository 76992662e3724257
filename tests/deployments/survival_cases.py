"""Requests and what the plain loop makes of them, engines that try to write it, and what has to hold in the end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from api.generation import Delta, complete, stream
from api.jobs import GenerationJob
from api.text import TextStream, continuation
from deployments.backend import ServeBackend
from protocol.request import FinishReason, GenerateRequest, StopRules
from router.policy import Fixed
from targets import plain
from targets.engine import Engine, EngineConfig
from targets.model import TargetModel, load_target
from tests.api.api_twins import card, tiny_tokenizer
from tests.deployments.mortal_twins import MODEL, Target
from tests.reference.engine import ScriptedDrafter, plain_texts, random_requests

VOCAB = 320
CARD = replace(card(MODEL), max_model_len=256)


@dataclass(frozen=True)
class Case:
    """A request, and what the plain loop makes of it."""

    job: GenerationJob
    streamed: bool
    token_ids: tuple[int, ...]
    text: str
    reason: FinishReason


def load(family: Path) -> TargetModel:
    return load_target(family / "large", dtype=torch.float32, num_positions=384, page_size=8)


def make_case(oracle: TargetModel, request: GenerateRequest, rng: random.Random) -> Case:
    """Some end at a token, some at a stop string, some at their length; half are streamed."""
    ids = plain.generate(oracle, request).tokens[len(request.prompt_ids) :]
    if rng.random() < 0.3:
        stop = StopRules(request.stop.max_tokens, frozenset([rng.choice(ids)]))
        request = replace(request, stop=stop)
    sequence = plain.generate(oracle, request)
    ids, reason = sequence.tokens[len(request.prompt_ids) :], sequence.finish_reason
    assert reason is not None
    text, stops = continuation(tiny_tokenizer(), request.prompt_ids, ids), ()
    if rng.random() < 0.4 and len(text) > 4:
        at = rng.randrange(len(text) - 2)
        stops = (text[at : at + 3],)
    piece = TextStream(tiny_tokenizer(), stops, request.prompt_ids).push(ids, last=True)
    reason = FinishReason.STOP if piece.stopped else reason
    job = GenerationJob(CARD, request, stops, CARD.tokenizer)
    return Case(job, rng.random() < 0.6, tuple(ids[: piece.num_tokens]), piece.text, reason)


def cases(oracle: TargetModel, seed: int, count: int = 8) -> list[Case]:
    rng = random.Random(seed)
    return [make_case(oracle, request, rng) for request in random_requests(seed, count, VOCAB, max_tokens=30)]


def engines(family: Path, oracle: TargetModel, made: list[Case], seed: int) -> Callable[[], Engine]:
    """Of one target; each drafts with errors of its own."""
    requests = [case.job.request for case in made]
    endless = [replace(request, stop=StopRules(request.stop.max_tokens)) for request in requests]
    texts = plain_texts(oracle, endless)
    rng = random.Random(seed)

    def make() -> Engine:
        drafter = ScriptedDrafter(requests, texts, rng.getrandbits(32), accuracy=0.7, trouble=0.1)
        config = EngineConfig(max_batch=rng.choice([2, 4, 16]), prefill_chunk=rng.choice([7, 64]))
        return Engine(load(family), Fixed(1, rng.choice([2, 4])), drafter, config)

    return make


async def answer(backend: ServeBackend, case: Case) -> list[Delta]:
    run = stream if case.streamed else complete
    async with aclosing(run(backend, case.job)) as deltas:
        return [delta async for delta in deltas]


def text_of(case: Case, deltas: list[Delta]) -> str:
    """The case's text. Without stop strings, bytes that are no characters depend on how the tokens were cut."""
    if case.job.stops:
        return case.text
    text = TextStream(tiny_tokenizer(), (), case.job.request.prompt_ids)
    parts = [case.token_ids[delta.index : delta.num_tokens] for delta in deltas]
    return "".join(text.push(part, last=number == len(parts)).text for number, part in enumerate(parts, start=1))


def assert_is_the_plain_loops(case: Case, deltas: list[Delta]) -> None:
    assert tuple(token for delta in deltas for token in delta.token_ids) == case.token_ids
    assert "".join(delta.text for delta in deltas) == text_of(case, deltas)
    assert deltas[-1].finish_reason is case.reason
    assert deltas[-1].num_tokens == len(case.token_ids)


async def assert_nothing_is_left(backend: ServeBackend, target: Target) -> None:
    assert backend._sink._inboxes == {}
    async with asyncio.timeout(20):
        while any(replica.engine.open_requests for replica in target.replicas):
            await asyncio.sleep(0.01)
    for replica in target.replicas:
        await asyncio.to_thread(replica.engine.stop)
        ledger = replica.engine._model.ledger
        ledger.check()
        assert ledger.num_free == ledger.num_pages
