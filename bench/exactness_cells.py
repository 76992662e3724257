"""The cells of the exactness matrices (bench/exactness.py)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from protocol.plan import Mode

BATCHES = (1, 4, 16)
DEPTHS: tuple[int | str, ...] = (2, 4, 6, "cascade")
POLICIES = ("random",)  # stands for a depth in a cell: it chooses its own, up to its length
LENGTHS = tuple(range(9))
TEMPERATURES = (0.0, 0.8)
IN_TURN, ANY = "in turn", "any"
WAYS: Mapping[str, tuple[Mode, ...]] = MappingProxyType(
    {IN_TURN: (), **{mode.value: (mode,) for mode in Mode if mode is not Mode.SERIAL}, ANY: tuple(Mode)}
)


@dataclass(frozen=True, slots=True)
class Cell:
    """kv_positions: positions that the target's KV holds; few enough, and sequences are preempted.

    way: how drafts come, one of WAYS. faulty: over a link and from a pool that are not to be trusted (bench/faulty.py).
    """

    batch: int
    depth: int | str
    length: int
    temperature: float
    page_size: int = 256
    kv_positions: int = 16 * 512
    way: str = IN_TURN
    faulty: bool = False


def full_matrix() -> list[Cell]:
    """Every setting, then tight memory with page size 16, where preemption is forced; policies that choose as well."""
    every = [Cell(*s) for s in itertools.product(BATCHES, DEPTHS, LENGTHS, TEMPERATURES)]
    tight = [
        Cell(16, depth, length, temperature, page_size=16, kv_positions=1600)
        for depth, length, temperature in itertools.product(DEPTHS, (0, 2, 5, 8), TEMPERATURES)
    ]
    chosen = [
        Cell(batch, policy, 8, temperature, page_size, kv_positions)
        for batch, policy, temperature in itertools.product(BATCHES, POLICIES, TEMPERATURES)
        for page_size, kv_positions in ((256, 16 * 512), (16, batch * 512 if batch < 16 else 1600))
    ]
    return every + tight + chosen


def overlap_matrix() -> list[Cell]:
    """Every setting with all ways mixed over a bad link, tight memory and choosing policies too; each way over a good
    one.
    """
    mixed = [replace(cell, way=ANY, faulty=True) for cell in full_matrix() if cell.length]
    depths: tuple[int | str, ...] = (2, "cascade")
    settings = [Cell(*setting) for setting in itertools.product(BATCHES, depths, (2, 5, 8), TEMPERATURES)]
    return mixed + [replace(cell, way=way) for cell in settings for way in WAYS if way != IN_TURN]


MATRICES: Mapping[str, Callable[[], list[Cell]]] = MappingProxyType({"serial": full_matrix, "overlap": overlap_matrix})
