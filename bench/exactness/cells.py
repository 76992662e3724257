"""The cells of the exactness matrices (bench/exactness/__main__.py)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from bench.policies import EMA, GOODPUT
from protocol.plan import Mode

BATCHES = (1, 4, 16)
DEPTHS = (2, 4, 6)
RANDOM = "random"
CHOOSING = (RANDOM, EMA, GOODPUT)  # stand for a depth in a cell: these policies choose their own, up to its length
LENGTHS = tuple(range(9))
TEMPERATURES = (0.0, 0.8)
IN_TURN, ANY = Mode.IN_TURN.value, "any"
# How a cell gets its proposals.
WAYS: Mapping[str, tuple[Mode, ...]] = MappingProxyType({**{mode.value: (mode,) for mode in Mode}, ANY: tuple(Mode)})


@dataclass(frozen=True, slots=True)
class ExactnessCell:
    """kv_positions: positions that the target's KV holds; few enough, and sequences are preempted.

    way: one of WAYS. faulty: over a link and from a pool that are not to be trusted (bench/exactness/faulty.py).
    """

    batch: int
    depth: int | str
    length: int
    temperature: float
    page_size: int = 256
    kv_positions: int = 16 * 512
    way: str = IN_TURN
    faulty: bool = False


def in_turn_matrix() -> list[ExactnessCell]:
    """Every setting, then tight memory with page size 16, where preemption is forced; policies that choose as well."""
    every = [ExactnessCell(*s) for s in itertools.product(BATCHES, DEPTHS, LENGTHS, TEMPERATURES)]
    tight = [
        ExactnessCell(16, depth, length, temperature, page_size=16, kv_positions=1600)
        for depth, length, temperature in itertools.product(DEPTHS, (0, 2, 5, 8), TEMPERATURES)
    ]
    chosen = [
        ExactnessCell(batch, policy, 8, temperature, page_size, kv_positions)
        for batch, policy, temperature in itertools.product(BATCHES, CHOOSING, TEMPERATURES)
        for page_size, kv_positions in ((256, 16 * 512), (16, batch * 512 if batch < 16 else 1600))
    ]
    return every + tight + chosen


def ahead_matrix() -> list[ExactnessCell]:
    """Every setting with all ways mixed over a bad link, tight memory and choosing policies too; each way over a good
    one.
    """
    mixed = [replace(cell, way=ANY, faulty=True) for cell in in_turn_matrix() if cell.length]
    settings = [ExactnessCell(*setting) for setting in itertools.product(BATCHES, (2,), (2, 5, 8), TEMPERATURES)]
    return mixed + [replace(cell, way=way) for cell in settings for way in WAYS if way != IN_TURN]


MATRICES: Mapping[str, Callable[[], list[ExactnessCell]]] = MappingProxyType(
    {"in_turn": in_turn_matrix, "ahead": ahead_matrix}
)
