"""What is measured, and the one seam behind which every engine stands.

An engine takes token ids and gives back, for each prompt, its tokens and when they arrived. Everything else, rates,
acceptance, latencies, is computed from that in one place (`bench/metrics.py`), so that one definition serves all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import torch

from bench.policies import ADAPTIVE, FIXED
from model.load import WeightFormat
from protocol.plan import Mode

TokenIds = Sequence[int]
PLAIN, CHOSEN = "plain", "chosen"
OURS = (PLAIN, FIXED, *ADAPTIVE)
# The pool in a process of its own: how a target may get its proposals then.
APART: Mapping[str, tuple[Mode, ...]] = MappingProxyType(
    {**{mode.value: (mode,) for mode in Mode}, CHOSEN: tuple(Mode)}
)
CHOOSING = (*ADAPTIVE, CHOSEN)  # modes that choose depth and length themselves


class Unavailable(Exception):
    """This engine cannot run here; the message says why. Its column is left out, the rest goes on."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One setting of one mode.

    queue: prompts that wait beyond the batch; 0 for batches that start together, more for a batch kept full.
    category: of the prompts, "" for all of them.
    """

    mode: str
    batch: int
    depth: int | None = None
    length: int = 0
    temperature: float = 0.0
    queue: int = 0
    category: str = ""

    @property
    def setting(self) -> str:
        return f"{self.depth}/{self.length}"

    @property
    def speculates(self) -> bool:
        return self.length > 0 or self.mode in CHOOSING


@dataclass(frozen=True, slots=True)
class Subject:
    """What every engine loads.

    max_length: tokens of the longest sequence, prompt included. weights: of ours. draft_gguf: llama.cpp's draft model.
    ngram: tokens that llama.cpp's n-grams have to repeat.
    """

    target: Path
    drafter: Path | None
    dtype: torch.dtype
    threads: int
    max_batch: int
    max_length: int
    weights: WeightFormat = WeightFormat.STORED
    draft_gguf: Path | None = None
    ngram: int = 12

    @property
    def positions(self) -> int:
        """KV positions that hold the largest batch, in whole pages."""
        return self.max_batch * -(-self.max_length // PAGE) * PAGE


PAGE = 256  # KV positions


@dataclass(frozen=True, slots=True)
class Timed:
    """One prompt's output.

    started: when it was handed over, in seconds of any steady clock; arrived: the same clock at each token.
    verified: sizes of the runs that a verifying pass gave, bonus included; empty for plain decoding.
    drafted: draft tokens behind them, None where the engine does not tell.
    """

    token_ids: tuple[int, ...] = field(repr=False)
    arrived: tuple[float, ...]
    started: float
    verified: tuple[int, ...] = ()
    drafted: int | None = None


@dataclass(frozen=True, slots=True)
class CellOutcome:
    """What one call gave. draft_ms: of one drafted token; None: not known."""

    outputs: tuple[Timed, ...]
    draft_ms: float | None = None


class BenchEngine(Protocol):
    """Holds its weights from open to close. All times are the engine's own work, token ids in and out.

    shares_noise: its sampled text is that of our plain loop.
    """

    name: str
    shares_noise: bool
    version: str  # known once open

    def open(self) -> None:
        """Raises Unavailable."""

    def run(self, cell: Cell, prompts: Sequence[TokenIds], max_tokens: int) -> CellOutcome:
        """Up to cell.batch prompts at a time, max_tokens for each, EOS ignored. Raises Unavailable when it died."""

    def close(self) -> None: ...
