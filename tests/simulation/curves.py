"""Cost curves made by hand, for simulations of machines that nobody has profiled."""

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

KEY = ModelKey("made by hand", "0", "bf16", 1, "1")
ROWS = (1.0, 8.0, 64.0)
WIDTHS = (1.0, 9.0, 17.0)  # tokens of a row
CONTEXTS = (64.0, 8192.0)
NEWS = (1.0, 64.0)


def linear_curves(
    verify: tuple[float, float, float],
    draft: tuple[float, float, float],
    exits: tuple[int, ...],
    prefill: tuple[float, float] = (1.0, 0.02),
    overhead_ms: float = 0.0,
    link_ms: float = 0.0,
    name: str = "by hand",
) -> CostCurves:
    """In ms. verify: of a pass, of each token in it, of 1,000 positions that each row holds. draft: of a layer for one
    token, of each row in it, of each further token that a row feeds. prefill: of a pass, and of each token.
    """
    fixed, token, held = verify
    layer, row, fed = draft
    pairs = product(ROWS, WIDTHS, CONTEXTS)
    verify_ms = [fixed + token * n * t + held * n * context / 1000 for n, t, context in pairs]
    grid = product(ROWS, exits, NEWS, (1, 9))
    draft_ms = [depth * (length * (layer + row * n) + fed * n * (new - 1)) for n, depth, new, length in grid]
    ends = (16.0, 4096.0)
    return CostCurves(
        name,
        TargetCosts(
            KEY,
            Curve(VERIFY_AXES, (ROWS, WIDTHS, CONTEXTS), tuple(verify_ms)),
            Curve(PREFILL_AXES, (ends,), tuple(prefill[0] + prefill[1] * end for end in ends)),
            Curve(ROW_AXES, (ROWS,), (overhead_ms,) * 3),
            0.0,
        ),
        DrafterCosts(
            KEY,
            Curve(DRAFT_AXES, (ROWS, tuple(map(float, exits)), NEWS, (1.0, 9.0)), tuple(draft_ms)),
            Curve(ROW_AXES, (ROWS,), (link_ms,) * 3),
            0.0,
        ),
    )


def flat_curves(verify_ms: float, draft_ms: float, link_ms: float, exits: tuple[int, ...] = (2, 4, 6)) -> CostCurves:
    """Hardly more for more rows. draft_ms: of a token at the last exit."""
    draft = (draft_ms / exits[-1], 0.01 * draft_ms / exits[-1], 0.001 * draft_ms / exits[-1])
    return linear_curves((verify_ms, 0.01 * verify_ms, 0.0), draft, exits, link_ms=link_ms)
