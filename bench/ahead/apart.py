"""The modes of `draftpool bench` whose pool has a process and a core of its own, and the cores that this leaves.

The pool gets the last core and the target those before it, as many as it has threads. Where there is one core only,
both run wherever the system puts them, and the result says so: they then take time from each other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch

from bench.ahead.pair import PairEngine, paired
from bench.cells import CHOSEN, Cell, Outcome, Subject, TokenIds, Unavailable
from bench.ours import PROFILE_REPEAT


@dataclass(frozen=True, slots=True)
class Cores:
    """Whose core is whose; none: not bound to any."""

    target: tuple[int, ...] = ()
    pool: tuple[int, ...] = ()

    @property
    def num_threads(self) -> int:
        """Of the target."""
        return max(len(self.target), 1)

    def __str__(self) -> str:
        if not self.pool:
            return "target and pool not bound to cores, there is one only"
        return f"target on cores {', '.join(map(str, self.target))}, pool on core {self.pool[0]}"


def divided(allowed: Sequence[int], num_threads: int) -> Cores:
    """num_threads: that the target would have alone."""
    if len(allowed) < 2:
        return Cores()
    return Cores(tuple(allowed[:-1][:num_threads]), tuple(allowed[-1:]))


class ApartEngine:
    """The modes that have their pool apart. While one of them runs, this process keeps to the target's cores."""

    name = PairEngine.name
    shares_noise = True

    def __init__(self, subject: Subject, modes: Sequence[str]) -> None:
        """modes: of those that will run."""
        self._subject, self._modes = subject, modes
        self._cores = divided(sorted(os.sched_getaffinity(0)), subject.threads)
        self._stack = ExitStack()
        self._pair: PairEngine | None = None
        self.version = f"{PairEngine.version} ({self._cores})"

    def open(self) -> None:
        subject = replace(self._subject, threads=self._cores.num_threads)
        opened = paired(subject, self._cores.pool, measured=PROFILE_REPEAT if CHOSEN in self._modes else 0)
        with self._at_home():
            try:
                self._pair = self._stack.enter_context(opened)
            except RuntimeError as error:
                raise Unavailable(str(error)) from None

    def run(self, cell: Cell, prompts: Sequence[TokenIds], max_tokens: int) -> Outcome:
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
        torch.set_num_threads(self._cores.num_threads)
        os.sched_setaffinity(0, self._cores.target or cores)
        try:
            yield
        finally:
            os.sched_setaffinity(0, cores)
            torch.set_num_threads(threads)
