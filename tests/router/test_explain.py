"""What is said of the router against arithmetic, and against the router itself."""

from __future__ import annotations

import json

import numpy as np
import pytest

from protocol.plan import BatchView, Mode, SequenceView
from router.explain import assumed, best, describe, options
from router.policy import Ema, Fixed, Goodput, Off, Policy
from router.tables import tables
from tests.router.curves import curves, draft_cost, verify_cost
from tests.router.game import Game, Luck, Truth
from tests.router.worlds import world

EXITS = (2, 4, 6)
COSTS = tables(curves(link=0.3, overhead=0.2), EXITS, 6, 16)


def view(num_rows: int, remaining: int = 100, modes: tuple[Mode, ...] = (Mode.IN_TURN,)) -> BatchView:
    return BatchView((SequenceView(200, remaining),) * num_rows, modes=modes)


def test_every_arm_is_told_at_every_length_and_off_comes_first() -> None:
    off, *others = options(assumed(COSTS, {2: 0.7, 6: 0.8}), COSTS, view(4, modes=(Mode.IN_TURN, Mode.AHEAD)))
    assert (off.name, off.length, off.tokens) == ("off", 0, 4)
    told = [(option.mode, option.depth, option.length) for option in others]
    assert told == [(mode, exit_, n) for mode in (Mode.IN_TURN, Mode.AHEAD) for exit_ in EXITS for n in range(1, 7)]
    assert [option.length for option in options(assumed(COSTS, {2: 0.7}), COSTS, view(4, remaining=1))] == [0]


def test_an_option_is_what_arithmetic_says() -> None:
    found = options(assumed(COSTS, {2: 0.7, 6: 0.8}), COSTS, view(4))
    (option,) = (each for each in found if (each.depth, each.length) == (4, 3))
    assert option.draft_ms == pytest.approx(draft_cost(4, 4, 3) + 0.3)
    assert option.verify_ms == pytest.approx(verify_cost(4, 4 * 4))
    assert option.rest_ms == pytest.approx(0.2)
    assert option.tokens == pytest.approx(4 * (1 + 0.75 + 0.75**2 + 0.75**3))
    assert option.goodput == pytest.approx(1e3 * option.tokens / option.round_ms)
    assert found[0].round_ms == pytest.approx(verify_cost(4, 4) + 0.2)


def test_a_live_router_tells_what_it_plays_and_believes_in_plain_values() -> None:
    large = world("large")
    policy = Goodput(tables(large.curves, large.exits, 12, 8))
    assert describe(policy)["arms"] == []
    truth, luck = Truth(large, {"draft 2": 1.5}), Luck(large, 4, 0)
    Game(policy, truth, luck, lambda turn: "code", 4, np.random.default_rng(0)).play(300)
    told = json.loads(json.dumps(describe(policy)))
    assert {arm["arm"] for arm in told["arms"]} == {"off", "depth 2", "depth 4", "depth 6"}
    assert told["arm"]["depth"] in large.exits
    assert told["acceptance"][str(told["arm"]["depth"])] == pytest.approx(0.8, abs=0.1)
    top = max(told["arms"], key=lambda arm: arm["tokens_per_second"])
    assert told["arm"]["tokens_per_second"] >= 0.9 * top["tokens_per_second"]


def test_every_policy_can_be_described_and_nothing_else() -> None:
    policies: list[Policy] = [Off(), Fixed(2, 4), Ema(COSTS)]
    names = [json.loads(json.dumps(describe(policy)))["policy"] for policy in policies]
    assert names == ["off", "fixed", "ema"]
    with pytest.raises(TypeError, match="no policy"):
        describe(best)  # type: ignore[arg-type]
