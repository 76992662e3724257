"""What speculation can give at batch 1, from costs and acceptance: tokens of a round over its price in plain steps.

    speed-up = acceptance length * step(1) / (step(length + 1) + length * draft)

Steps of both widths are measured in turn, as real rounds run them, so that neither lives off the other's cache.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

from protocol.request import SamplingParams
from targets.model import ForwardRow, TargetModel

CONTEXT, NUM_PASSES = 256, 30
PROBE = -1  # the sequence's id in the ledger


def law(acceptance_length: float, length: int, plain_ms: float, verify_ms: float, draft_ms: float) -> float:
    """draft_ms: of one token."""
    return acceptance_length * plain_ms / (verify_ms + length * draft_ms)


def step_ms(
    model: TargetModel, widths: Sequence[int], temperature: float, passes: int = NUM_PASSES
) -> dict[int, float]:
    """Of one sequence's pass over so many new tokens behind CONTEXT others, sampling included. Widths run in turn."""
    times: dict[int, list[float]] = {width: [] for width in widths}
    model.ledger.open(PROBE)
    try:
        if not model.ledger.reserve(PROBE, CONTEXT + max(widths)):
            raise RuntimeError(f"{model.ledger.num_free} free pages do not hold {CONTEXT + max(widths)} positions")
        for _ in range(passes + 2):
            for width in widths:
                times[width].append(_pass_ms(model, width, SamplingParams(temperature)))
    finally:
        model.ledger.free(PROBE)
    return {width: median(taken[2:]) for width, taken in times.items()}


def _pass_ms(model: TargetModel, width: int, sampling: SamplingParams) -> float:
    start = time.perf_counter()
    row = ForwardRow(PROBE, CONTEXT, [1] * width, num_logits=width)
    model.pick([row], [sampling] * width, range(CONTEXT + 1, CONTEXT + 1 + width))
    return 1e3 * (time.perf_counter() - start)
