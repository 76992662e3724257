"""The engine alone, on the cores and threads that a replica would have: what serving is measured against."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoTokenizer

from api.text import decode
from bench.ours import requests
from deployments.config import TargetConfig
from deployments.models import load_model
from deployments.process import pinned_process
from model.files import resolve
from protocol.request import GenerateRequest
from router.policy import Off
from targets.complete import complete
from targets.engine import Engine, EngineConfig


@dataclass(frozen=True, slots=True)
class Timing:
    """One run of all prompts, from the first submission to the last token."""

    num_tokens: int
    seconds: float
    texts: list[str] = field(repr=False)

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.seconds


@contextmanager
def engine_alone(target: TargetConfig, prompts: Sequence[str], max_tokens: int) -> Iterator[Callable[[], Timing]]:
    """Yields what runs all prompts once: greedy, EOS ignored, target.max_batch at a time, the others queued.

    During a run all threads of this process keep to the target's cores; otherwise they are where they were.
    """
    tokenizer = AutoTokenizer.from_pretrained(resolve(target.path))
    asked = requests([tokenizer.encode(prompt) for prompt in prompts], 0.0, max_tokens)
    config = EngineConfig(target.max_batch, len(asked), target.prefill_chunk, target.max_model_len)
    with ExitStack() as stack:
        with pinned_process(target):
            engine = stack.enter_context(Engine(load_model(target), Off(), None, config))

        def run() -> Timing:
            with pinned_process(target):
                return timed(engine, asked, tokenizer)

        yield run


def timed(engine: Engine, asked: Sequence[GenerateRequest], tokenizer: Any) -> Timing:
    began = time.perf_counter()
    completions = complete(engine, asked)
    seconds = max(completion.last_s for completion in completions) - began
    texts = [decode(tokenizer, completion.token_ids) for completion in completions]
    return Timing(sum(len(completion.token_ids) for completion in completions), seconds, texts)
