"""Cost curves made by hand: linear in rows and tokens, so that every prediction can be computed beside."""

from __future__ import annotations

from itertools import product

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

KEY = ModelKey("hand", "0", "bf16", 2, "1")
ROWS = (1.0, 8.0, 32.0)


def verify_cost(num_rows: float, num_tokens: float, fixed: float = 1.0, token: float = 0.1, row: float = 0.1) -> float:
    return fixed + row * num_rows + token * num_tokens


def draft_cost(num_rows: float, depth: float, length: float, layer: float = 0.04, row: float = 0.01) -> float:
    return length * depth * (layer + row * num_rows)


def curves(
    token: float = 0.1, layer: float = 0.04, row: float = 0.01, overhead: float = 0.0, link: float = 0.0
) -> CostCurves:
    verify = [verify_cost(n, n * t, token=token) for n, t, _ in product(ROWS, (1, 9), (64, 1024))]
    draft = [draft_cost(n, d, k, layer, row) for n, d, _, k in product(ROWS, (2, 4, 6), (1, 16), (1, 5))]
    flat = Curve(ROW_AXES, (ROWS,), (overhead,) * 3)
    return CostCurves(
        "hand",
        TargetCosts(
            KEY,
            Curve(VERIFY_AXES, (ROWS, (1.0, 9.0), (64.0, 1024.0)), tuple(verify)),
            Curve(PREFILL_AXES, ((16.0, 512.0),), (2.0, 40.0)),
            flat,
            0.0,
        ),
        DrafterCosts(
            KEY,
            Curve(DRAFT_AXES, (ROWS, (2.0, 4.0, 6.0), (1.0, 16.0), (1.0, 5.0)), tuple(draft)),
            Curve(ROW_AXES, (ROWS,), (link,) * 3),
            0.0,
        ),
    )
