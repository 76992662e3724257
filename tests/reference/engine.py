"""Ways to run an engine to the end, and drafters that say what they are told."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence

from protocol.draft import DraftBlock, DraftReply, DraftRequest, DraftStatus
from protocol.logit_rules import TokenLogprobs
from protocol.request import FinishReason, GenerateRequest, SamplingParams, SequenceStats, StopRules, TokenRun
from targets import plain
from targets.engine import Engine
from targets.model import TargetModel


def random_requests(
    seed: int, count: int, vocab_size: int, *, max_tokens: int = 20, temperature: float | None = None
) -> list[GenerateRequest]:
    """Prompts of 1 to 40 tokens; every other request sampled unless a temperature is given."""
    rng = random.Random(seed)
    requests = []
    for index in range(count):
        warm = 0.8 * (index % 2) if temperature is None else temperature
        prompt = tuple(rng.randrange(vocab_size) for _ in range(rng.randint(1, 40)))
        sampling = SamplingParams(temperature=warm, seed=rng.getrandbits(64))
        requests.append(GenerateRequest(str(index), prompt, sampling, StopRules(max_tokens)))
    return requests


def plain_texts(model: TargetModel, requests: Sequence[GenerateRequest]) -> dict[str, list[int]]:
    return {r.request_id: plain.generate(model, r).tokens[len(r.prompt_ids) :] for r in requests}


class Collector:
    """Gathers runs by request, and checks that each starts where the last one ended."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.reasons: dict[str, FinishReason] = {}
        self.stats: dict[str, SequenceStats] = {}
        self.logprobs: dict[str, list[TokenLogprobs]] = {}
        self.of_prompt: dict[str, list[TokenLogprobs]] = {}
        self._changed = threading.Condition()

    def __call__(self, run: TokenRun) -> None:
        with self._changed:
            tokens = self.tokens.setdefault(run.request_id, [])
            assert run.index == len(tokens)
            assert run.request_id not in self.reasons
            tokens += run.token_ids
            self.logprobs.setdefault(run.request_id, []).extend(run.logprobs)
            assert len(run.logprobs) in (0, len(run.token_ids))
            assert not (run.index and run.of_prompt)
            self.of_prompt.setdefault(run.request_id, []).extend(run.of_prompt)
            if run.finish_reason is not None:
                self.reasons[run.request_id] = run.finish_reason
                assert run.stats is not None
                self.stats[run.request_id] = run.stats
            self._changed.notify_all()

    def wait(self, num_finished: int, timeout: float = 60) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.reasons) >= num_finished, timeout)

    def wait_for_tokens(self, request_id: str, count: int, timeout: float = 60) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.tokens.get(request_id, ())) >= count, timeout)


def run_all(engine: Engine, requests: Sequence[GenerateRequest]) -> Collector:
    collector = Collector()
    for request in requests:
        engine.submit(request, collector)
    with engine:
        collector.wait(len(requests))
    return collector


class ScriptedDrafter:
    """Knows the plain text of every request and errs at random; sometimes it is late, full or forgetful."""

    def __init__(
        self, requests: Sequence[GenerateRequest], texts: dict[str, list[int]], seed: int, accuracy: float = 0.7,
        trouble: float = 0.0,
    ) -> None:  # fmt: skip
        self._known = [(r.prompt_ids, texts[r.request_id]) for r in requests]
        self._rng = random.Random(seed)
        self._accuracy = accuracy
        self._trouble = trouble
        self._contexts: dict[int, list[int]] = {}
        self.num_closed = 0

    @property
    def num_open(self) -> int:
        return len(self._contexts)

    def open(self, request: DraftRequest) -> None:
        for row in request.rows:
            self._contexts[row.sequence_id] = list(row.tokens)

    def draft(self, request: DraftRequest) -> DraftReply | None:
        if self._rng.random() < self._trouble:
            return None
        blocks = [self._block(row.sequence_id, row.start, row.tokens, row.length) for row in request.rows]
        return DraftReply(request.incarnation, request.round_id, tuple(blocks))

    def close(self, sequence_ids: Sequence[int]) -> None:
        for sequence_id in sequence_ids:
            self._contexts.pop(sequence_id, None)
            self.num_closed += 1

    def _block(self, sequence_id: int, start: int, tokens: tuple[int, ...], length: int) -> DraftBlock:
        base = start + len(tokens)
        context = self._contexts.setdefault(sequence_id, [])
        if self._rng.random() < self._trouble:
            del self._contexts[sequence_id]
            return DraftBlock(sequence_id, base, self._rng.choice([DraftStatus.BUSY, DraftStatus.NEED_CONTEXT]))
        if start > len(context):
            return DraftBlock(sequence_id, base, DraftStatus.NEED_CONTEXT)
        context[start:] = tokens
        text = next(text for prompt, text in self._known if (*prompt, *text)[: len(context)] == tuple(context))
        prompt_length = next(len(p) for p, t in self._known if t is text)
        future = text[len(context) - prompt_length :][:length]
        draft = tuple(token if self._rng.random() < self._accuracy else 0 for token in future)
        return DraftBlock(sequence_id, base, DraftStatus.OK, draft, (1.0,) * len(draft))
