"""A drafter on its target's KV at batch 8, as SmolLM2's file for SmolLM2 on AVX-512, where drafts do not quite pay.

The profile that the router is given was measured beside neighbours: each of its cells is off by chance.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from router.costs import DRAFT_AXES, PREFILL_AXES, ROW_AXES, VERIFY_AXES, CostCurves, Curve, DrafterCosts, TargetCosts
from tests.router.worlds import KEY, Texts, World

EXIT, BATCH = 30, 8
ROWS, WIDTHS, CONTEXTS = (1.0, 2.0, 4.0, 8.0), (1.0, 2.0, 3.0, 6.0, 9.0), (64.0, 1024.0)
PRICES = {"dear": (2.2, 1.24), "cheap": (1.5, 0.5)}  # ms of a drafted token, and for each row
TEXTS: dict[str, Texts] = {
    "dear": {"copied": {EXIT: 0.88}, "free": {EXIT: 0.75}},
    "cheap": {"copied": {EXIT: 0.66}, "free": {EXIT: 0.6}},
}


def verify_ms(rows: float, width: float, context: float) -> float:
    tokens = rows * width
    return max(12.6 + 0.55 * tokens, 8.3 + 1.375 * tokens) + 2.1 * rows * (context - 64) / 960 * (0.75 + 0.4 * width)


def curves(prices: str, deviation: float = 0.0, seed: int = 0) -> CostCurves:
    """deviation: of the log of every time that was measured."""
    rng, (token, row) = np.random.default_rng(seed), PRICES[prices]

    def told(ms: float) -> float:
        return ms * float(np.exp(deviation * rng.standard_normal()))

    passes = Curve(
        VERIFY_AXES,
        (ROWS, WIDTHS, CONTEXTS),
        tuple(told(verify_ms(*cell)) for cell in product(ROWS, WIDTHS, CONTEXTS)),
    )
    drafts = tuple(told(length * (token + row * rows)) for rows, length in product(ROWS, (1, 5)))
    flat, free = Curve(ROW_AXES, ((1.0, 8.0),), (0.25, 0.5)), Curve(ROW_AXES, ((1.0,),), (0.0,))
    return CostCurves(
        prices,
        TargetCosts(KEY, passes, Curve(PREFILL_AXES, ((16.0,),), (1.0,)), flat, 0.0),
        DrafterCosts(KEY, Curve(DRAFT_AXES, (ROWS, (float(EXIT),), (1.0,), (1.0, 5.0)), drafts), free, 0.0),
    )


def world(prices: str) -> World:
    return World(prices, curves(prices), TEXTS[prices])
