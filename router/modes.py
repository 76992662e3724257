"""The kinds of round, and what each brings by the latency law: tokens of a round over the time that it takes.

    mirror   the pool drafts ahead while the target verifies
    hinted   and half way through its pass the target tells what it would pick so far, which costs a part of the pass
    serial   plan, draft, verify, one after the other
    lanes    half of the batch is drafted for while the other half is verified; for two rows or more

A round that misses a window waits for a fresh draft or goes without (router/misses.py), whichever brings more; of many
rows one nearly always misses. What a round takes beyond the law is learned (router/mode_beliefs.py), and which mode is
played follows from both (router/mode_choice.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from router.law import Law


class Mode(StrEnum):
    MIRROR = "mirror"
    HINTED = "hinted"
    SERIAL = "serial"
    LANES = "lanes"


AHEAD = (Mode.MIRROR, Mode.HINTED)


@dataclass(frozen=True, slots=True)
class Round:
    """As it was played. lengths, accepted: by row, of what was verified. rest_ms: neither waited nor verified.

    ms: all of it. draft_ms: that fresh drafts were waited for; None: none were. num_planned: rows that were to have a
    window; num_hits: those that one was at hand for.
    """

    mode: Mode
    lengths: tuple[int, ...]
    accepted: tuple[int, ...]
    ms: float
    verify_ms: float
    rest_ms: float
    draft_ms: float | None
    num_planned: int
    num_hits: int


@dataclass(frozen=True, slots=True)
class Outlook:
    """What rounds are believed to be like. draft_ms: until a fresh draft is there. accepted: of a window."""

    num_rows: int
    verify_ms: float
    draft_ms: float
    rest_ms: float
    accepted: float


@dataclass(frozen=True, slots=True)
class Misses:
    """What becomes of windows that are not at hand. waits: share of rounds that wait for fresh ones.

    windows: share of rows that have a window in the end.
    """

    waits: float
    windows: float


def playable(modes: Sequence[Mode], num_rows: int) -> list[Mode]:
    """Those that a batch of this size can be played in, one at least: a single row has no second lane."""
    return [mode for mode in modes if mode is not Mode.LANES or num_rows > 1] or [Mode.SERIAL]


def goodput(mode: Mode, outlook: Outlook, misses: Misses) -> float:
    """Tokens per ms by the law."""
    num_rows = outlook.num_rows / 2 if mode is Mode.LANES else outlook.num_rows
    return num_rows * (1 + misses.windows * outlook.accepted) / law_ms(mode, outlook, misses.waits)


def foreseen(mode: Mode, outlook: Outlook, hits: float) -> Misses:
    """By the share of windows that are at hand: fresh ones are waited for, or done without, whichever brings more."""
    if mode is Mode.LANES:
        return Misses(0.0, 1.0)
    waits, goes = Misses(1 - hits**outlook.num_rows, 1.0), Misses(0.0, hits)
    return max(waits, goes, key=lambda misses: goodput(mode, outlook, misses))


def law_ms(mode: Mode, outlook: Outlook, waits: float) -> float:
    """Of a round, or of rounds of which this share waits for fresh drafts; in lanes of one lane."""
    half = half_share(outlook.num_rows) if mode is Mode.LANES else 1.0
    law = Law(half * outlook.verify_ms, half * outlook.draft_ms, outlook.rest_ms, hits=1 - waits)
    return law.verify_ms + waits * law.wait_ms + law.rest_ms if mode is Mode.SERIAL else law.mirror_ms


def half_share(num_rows: int) -> float:
    """What half a batch is taken to cost of a whole one: nearly all where weights are read for a few rows."""
    return max(0.6, 1 - 0.04 * num_rows)
