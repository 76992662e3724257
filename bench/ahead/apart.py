"""The modes of `draftpool bench` whose pool has a process and a core of its own, and the cores that this leaves.

The pool gets the last core and the target those before it, as many as it has threads. Where there is one core only,
both run wherever the system puts them, and the result says so: they then take time from each other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch

from bench.ahead.pair import PairEngine, paired
from bench.cells import CHOSEN, Cell, CellOutcome, Subject, TokenIds, Unavailable
from bench.ours import PROFILE_REPEAT


def divided(allowed: Sequence[int], num_threads: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Cores of the target, which would have so many threads alone, and of the pool; none where there is one only."""
    return (tuple(allowed[:-1][:num_threads]), tuple(allowed[-1:])) if len(allowed) > 1 else ((), ())


class ApartEngine:
    """The modes that have their pool apart. While one of them runs, this process keeps to the target's cores."""

    name = PairEngine.name
    shares_noise = True

    def __init__(self, subject: Subject, modes: Sequence[str]) -> None:
        """modes: of those that will run."""
        self._subject, self._modes = subject, modes
        self._target_cores, self._pool_cores = divided(sorted(os.sched_getaffinity(0)), subject.threads)
        self._num_threads = max(len(self._target_cores), 1)
        self._stack = ExitStack()
        self._pair: PairEngine | None = None
        place = f"target on cores {self._target_cores}, pool on {self._pool_cores}" if self._pool_cores else "one core"
        self.version = f"{PairEngine.version} ({place})"

    def open(self) -> None:
        subject = replace(self._subject, threads=self._num_threads)
        opened = paired(subject, self._pool_cores, measured=PROFILE_REPEAT if CHOSEN in self._modes else 0)
        with self._at_home():
            try:
                self._pair = self._stack.enter_context(opened)
            except RuntimeError as error:
                raise Unavailable(str(error)) from None

    def run(self, cell: Cell, prompts: Sequence[TokenIds], max_tokens: int) -> CellOutcome:
        if self._pair is None:
            raise RuntimeError("open the engine first")
        with self._at_home():
            return self._pair.run(cell, prompts, max_tokens)

    def close(self) -> None:
        self._pair = None
        self._stack.close()

    @contextmanager
    def _at_home(self) -> Iterator[None]:
        """This thread, and those that it starts meanwhile, on the target's cores."""
        cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
        torch.set_num_threads(self._num_threads)
        os.sched_setaffinity(0, self._target_cores or cores)
        try:
            yield
        finally:
            os.sched_setaffinity(0, cores)
            torch.set_num_threads(threads)
