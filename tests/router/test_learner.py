"""What a digest makes of a round."""

from __future__ import annotations

from protocol.outcome import Probe, RoundOutcome, RowOutcome
from protocol.plan import DepthRule, Plan
from router.acceptance import Acceptance
from router.learner import Learner
from router.predict import Predictor
from router.probing import Probing
from router.tables import tables
from tests.router.curves import curves

EXITS = (2, 6)
RULES = (DepthRule((2,)), DepthRule((6,)))


def cost_of_a_probe(num_prefill_tokens: int) -> float:
    """As believed after one that took half a second, with so many tokens of prompts beside it."""
    predictor, probing = Predictor(tables(curves(), RULES, 8, 8)), Probing(0.01, 4, cost_ms=2.0)
    learner = Learner(RULES, EXITS, predictor, Acceptance(RULES, 8), probing, evidence=24)
    probe = Probe(10, ((True,) * 4, (True,) * 4), ((0.9,) * 4, (0.9,) * 4))
    row = RowOutcome(0, 2, 4, (2,) * 4, (0.5,) * 4, num_fed=1, probe=probe)
    took = RoundOutcome(
        Plan(RULES[0], (4,), probes=(0,)),
        (row,),
        100.0,
        draft_ms=500.0,
        verify_ms=1.0,
        rest_ms=0.1,
        num_prefill_tokens=num_prefill_tokens,
    )
    learner.digest([took], [0.0, 0.0])
    return probing.cost_ms


def test_a_probe_costs_what_its_round_took_beyond_the_draft_unless_the_pool_ran_prompts_too() -> None:
    assert cost_of_a_probe(num_prefill_tokens=0) > 100.0
    assert cost_of_a_probe(num_prefill_tokens=64) == 2.0
