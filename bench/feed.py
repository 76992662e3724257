"""Closed load on an engine: so many sequences at a time, and what they commit within the measured time."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from protocol.request import GenerateRequest, SamplingParams, StopRules, TokenRun
from targets.engine import Engine


@dataclass(slots=True)
class Counter:
    """Committed tokens that came within the measured time."""

    warm_s: float
    measure_s: float
    began: float = field(default_factory=time.monotonic)
    count: int = 0

    def add(self, num_tokens: int) -> None:
        if 0 <= self._since < self.measure_s:
            self.count += num_tokens

    @property
    def is_over(self) -> bool:
        return self._since >= self.measure_s

    @property
    def _since(self) -> float:
        return time.monotonic() - self.began - self.warm_s


@dataclass(slots=True)
class Feed:
    """Keeps an engine full: whatever ends is followed by the next prompt."""

    engine: Engine
    counter: Counter
    prompts: Sequence[tuple[int, ...]]
    load: int
    max_tokens: int
    _number: Iterator[int] = field(default_factory=itertools.count)

    def start(self) -> None:
        for _ in range(self.load):
            self.next()

    def next(self) -> None:
        number = next(self._number)
        prompt = self.prompts[(7 * number) % len(self.prompts)]
        request = GenerateRequest(str(number), prompt, SamplingParams(0.0, seed=number), StopRules(self.max_tokens))
        self.engine.submit(request, self.take)

    def take(self, run: TokenRun) -> None:
        self.counter.add(len(run.token_ids))
        ended = run.finish_reason is not None and run.finish_reason.value in ("stop", "length")
        if ended and not self.counter.is_over:
            self.next()
