"""What rounds cost in the games: the demo as measured on two CPU cores, and models on GPUs by arithmetic.

Assumptions for GPUs: an H200 reads 4.2 TB/s and computes 5e14 operations per second of useful work. The 8B target runs
on one, the 70B target on four with 1.6 ms of all-reduce a pass; both hold bf16 weights and read 128 and 320 KB of KV a
token. The drafter has exits behind 4, 8 and 16 layers of 100 MB in bf16. On its own GPU a layer takes 30 us (launches
bound it), the head 100 us. On 32 CPU cores it runs in int8: a layer takes 0.25 ms to read and 0.05 ms for each row, the
head 0.16.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from router.costs import (
    DRAFT_AXES,
    PREFILL_AXES,
    ROW_AXES,
    VERIFY_AXES,
    CostCurves,
    Curve,
    DrafterCosts,
    ModelKey,
    TargetCosts,
)

KEY = ModelKey("by arithmetic", "0", "bf16", 1, "1")
ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
PROFILE = Path(__file__).parents[2] / "bench/results/profile.demo.json"
Texts = dict[str, dict[int, float]]  # acceptance rate of each exit


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """texts: by name, the acceptance rate of each exit."""

    name: str
    curves: CostCurves
    texts: Texts

    @property
    def exits(self) -> tuple[int, ...]:
        return tuple(next(iter(self.texts.values())))


DEMO_TEXTS: Texts = {
    "code": {2: 0.80, 4: 0.83, 6: 0.835},
    "noise": {2: 0.613, 4: 0.63, 6: 0.635},
    "hard": {2: 0.15, 4: 0.17, 6: 0.18},
}
GPU_TEXTS: Texts = {
    "easy": {4: 0.72, 8: 0.82, 16: 0.88},
    "chat": {4: 0.55, 8: 0.65, 16: 0.72},
    "hard": {4: 0.10, 8: 0.14, 16: 0.18},
}


def verify_8b(rows: float, tokens: float, context: float) -> float:
    read = (16e9 + rows * context * 131e3) / 4.2e9
    return 0.5 + max(read, 1.6e10 * rows * tokens / 5e11)


def verify_70b(rows: float, tokens: float, context: float) -> float:
    read = (140e9 + rows * context * 328e3) / (4 * 4.2e9)
    return 2.0 + max(read, 1.4e11 * rows * tokens / (4 * 5e11))


def draft_gpu(rows: float, layers: float) -> float:
    return 0.1 + layers * (0.03 + 0.0002 * rows)


def draft_cpu(rows: float, layers: float) -> float:
    return 0.16 + layers * (0.25 + 0.05 * rows)


def by_arithmetic(
    name: str,
    verify: Callable[[float, float, float], float],
    token: Callable[[float, float], float],
    exits: Sequence[int],
) -> CostCurves:
    """token: ms of one drafted token for so many rows through so many layers."""
    each, contexts = tuple(float(n) for n in range(1, 14)), (256.0, 4096.0)
    depths, unseen, lengths = tuple(map(float, exits)), (1.0, 64.0), (1.0, 12.0)
    passes = tuple(verify(rows, tokens, context) for rows, tokens, context in product(ROWS, each, contexts))
    drafts = tuple(
        length * token(rows, depth) + 0.2 * (new - 1) * token(rows, depth) / 8
        for rows, depth, new, length in product(ROWS, depths, unseen, lengths)
    )
    flat = Curve(ROW_AXES, (ROWS,), (0.3,) * len(ROWS))
    return CostCurves(
        name,
        TargetCosts(
            KEY, Curve(VERIFY_AXES, (ROWS, each, contexts), passes), Curve(PREFILL_AXES, ((16.0,),), (1.0,)), flat, 0.0
        ),
        DrafterCosts(KEY, Curve(DRAFT_AXES, (ROWS, depths, unseen, lengths), drafts), flat, 0.0),
    )


@cache
def world(name: str) -> World:
    """large or small; 8B or 70B, pool on GPU or CPU."""
    if name in ("large", "small"):
        known = {one["name"]: one for one in json.loads(PROFILE.read_text())["curves"]}
        return World(name, _curves(known[name]), DEMO_TEXTS)
    size, place = name.split(", pool on ")
    verify = {"8B": verify_8b, "70B": verify_70b}[size]
    token = {"GPU": draft_gpu, "CPU": draft_cpu}[place]
    return World(name, by_arithmetic(size, verify, token, tuple(GPU_TEXTS["easy"])), GPU_TEXTS)


def _curves(one: dict[str, Any]) -> CostCurves:
    """The file is of an earlier schema."""

    def curve(told: dict[str, Any]) -> Curve:
        return Curve(tuple(told["axes"]), tuple(map(tuple, told["points"])), tuple(told["ms"]))

    target, drafter = one["target"], one["drafter"]
    times = [curve(target[name]) for name in ("verify", "prefill", "overhead")]
    return CostCurves(
        one["name"],
        TargetCosts(KEY, *times, 0.0),
        DrafterCosts(KEY, curve(drafter["draft"]), curve(drafter["link"]), 0.0),
    )
