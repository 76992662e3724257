"""The adaptive policy in games whose best fixed arm is known."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean, median
from typing import Any

import numpy as np
import pytest

from protocol.outcome import Probe, RoundOutcome, RowOutcome
from protocol.plan import BatchView, DepthRule, SequenceView
from router.goodput import Goodput, GoodputConfig
from router.policy import Fixed, Off, Policy
from router.predict import Predictor
from router.tables import tables
from tests.router.curves import curves
from tests.router.game import Game, Hazards
from tests.sizes import quick

EXITS = (2, 4, 6)
RULES = tuple(DepthRule((exit_,)) for exit_ in EXITS)
COSTS = {
    "cheap drafts": {"layer": 0.02, "row": 0.002, "token": 0.02},
    "dear tokens": {"layer": 0.02, "row": 0.01, "token": 0.3},
    "dear drafts": {"layer": 0.4, "row": 0.1, "token": 0.1},
    "layers nearly free": {"layer": 0.004, "row": 0.0005, "token": 0.05},
}
TEXTS = {
    "easy": {2: 0.8, 4: 0.85, 6: 0.9},
    "hard": {2: 0.1, 4: 0.15, 6: 0.2},
    "depth pays": {2: 0.3, 4: 0.6, 6: 0.92},
}


def play(
    policy: Policy, costs: dict[str, float], hazards: Callable[[int], Hazards], batch: int, seed: int, **game: float
) -> Game:
    true = Predictor(tables(curves(overhead=0.05, **costs), RULES, 12, 32))
    return Game(policy, true, hazards, batch, random.Random(seed), **game)


def adaptive(costs: dict[str, float], **config: object) -> Goodput:
    return Goodput(curves(overhead=0.05, **costs), GoodputConfig(RULES, EXITS, **config))


def best_fixed(costs: dict[str, float], hazards: Hazards, batch: int, rounds: int = 200) -> float:
    arms: list[Policy] = [Off(), *(Fixed(rule, length) for rule in RULES for length in (1, 2, 4, 8))]
    return max(play(arm, costs, lambda turn: hazards, batch, seed=1).play(rounds) for arm in arms)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("batch", quick([8, 1, 32], 1))
def test_it_comes_close_to_the_best_fixed_arm_whatever_the_costs_and_the_text(cost: str, text: str, batch: int) -> None:
    game = play(adaptive(COSTS[cost]), COSTS[cost], lambda turn: TEXTS[text], batch, seed=2, noise=0.1)
    game.play(120)
    rounds = 1000 if batch == 1 else 250  # a lone sequence tells little in a round
    assert game.play(rounds) >= 0.91 * best_fixed(COSTS[cost], TEXTS[text], batch, rounds)


@pytest.mark.parametrize("batch", [1, 8])
def test_a_hiccup_in_the_profile_keeps_no_rule_from_being_played(batch: int) -> None:
    costs, text = {"layer": 0.1, "row": 0.005, "token": 0.05}, {2: 0.75, 4: 0.77, 6: 0.78}
    profile = curves(overhead=0.05, **costs)
    assert profile.drafter is not None
    draft, of_one_depth = profile.drafter.draft, 4  # axes: rows, depths, unseen tokens, lengths
    hiccup = tuple(2.4 * ms if at // of_one_depth % len(EXITS) == 0 else ms for at, ms in enumerate(draft.ms))
    wrong = replace(profile, drafter=replace(profile.drafter, draft=replace(draft, ms=hiccup)))
    shares = []
    for seed in range(5):
        game = play(Goodput(wrong, GoodputConfig(RULES, EXITS)), costs, lambda turn: text, batch, seed)
        game.play(300)
        drafting = [plan for plan in game.plans[150:] if any(plan.lengths)]
        shares.append(sum(plan.depth == RULES[0] for plan in drafting) / len(drafting))
    assert median(shares) >= 0.8


@pytest.mark.parametrize(("known", "is_tried"), [(10.0, True), (4000.0, False)])
def test_a_rule_that_had_bad_luck_is_tried_again_while_little_is_known_of_it(known: float, is_tried: bool) -> None:
    policy = Goodput(curves(overhead=0.05, layer=0.1, row=0.005, token=0.05), GoodputConfig(RULES, EXITS))
    game = play(policy, {"layer": 0.1, "row": 0.005, "token": 0.05}, lambda turn: {2: 0.84, 4: 0.85, 6: 0.86}, 1, 0)
    game.play(60)
    for rule, (weight, share) in zip(
        policy.acceptance._rules, ((known, 0.55), (4000.0, 0.6), (4000.0, 0.8)), strict=True
    ):
        rule.reached, rule.hazards = weight * share ** np.arange(12), None
        rule.accepted = share * rule.reached
    rows = view(10_000)
    played = set()
    for number in range(40):
        policy._decide(rows)
        assert policy.arm is not None
        if number:  # the first one may keep what was played so far
            played.add(policy.arm.rule)
    assert (0 in played) == is_tried


@pytest.mark.slow
def test_confidence_that_tells_is_worth_tokens() -> None:
    costs, text = COSTS["dear tokens"], {2: 0.6, 4: 0.65, 6: 0.7}
    gains = []
    for seed in range(6):
        blind, told = (play(adaptive(costs), costs, lambda turn: text, 1, seed, spread=share) for share in (0.0, 0.95))
        for game in (blind, told):
            game.play(150)
        gains.append(told.play(1000) / blind.play(1000))
    assert median(gains) > 1.01
    assert min(gains) > 0.98


@pytest.mark.parametrize("batch", [1, 8])
def test_where_little_of_drafting_is_waited_for_drafts_are_longer_and_as_good_as_the_best_fixed(batch: int) -> None:
    costs, text = COSTS["dear drafts"], {2: 0.7, 4: 0.72, 6: 0.74}
    hidden: dict[str, Any] = {"overlap": "mirror", "exposed": 0.1}
    turn = play(adaptive(costs), costs, lambda turn: text, batch, 1)
    mirror = play(adaptive(costs), costs, lambda turn: text, batch, 1, **hidden)
    fixed = [play(Fixed(RULES[0], length), costs, lambda turn: text, batch, 1, **hidden) for length in (1, 2, 4, 8)]
    for game in (turn, mirror):
        game.play(150)
    drafted = [fmean(fmean(plan.lengths) for plan in game.plans[100:]) for game in (turn, mirror)]
    assert drafted[1] > drafted[0] + 1
    assert mirror.play(400) > 0.92 * max(game.play(400) for game in fixed)


def test_what_is_waited_for_is_known_by_the_way_that_drafts_are_made() -> None:
    costs, text = COSTS["cheap drafts"], {2: 0.7, 4: 0.72, 6: 0.74}
    policy = adaptive(costs)
    game = play(policy, costs, lambda turn: text, 4, 1)
    for overlap, exposed in [("mirror", 0.1), ("", 1.0), ("lanes", 0.6), ("", 1.0)] * 3:
        game.overlap, game.exposed = overlap, exposed
        game.play(60)
    found = [policy.predictor.exposed(overlap, 4) for overlap in ("mirror", "lanes", "", "never seen")]
    assert found == pytest.approx([0.1, 0.6, 1.0, 1.0], rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "rounds"), [(1, 60), (8, 20)])
def test_it_turns_off_when_the_text_changes_and_on_again(batch: int, rounds: int) -> None:
    costs, switch = COSTS["dear drafts"] | {"layer": 0.1}, 200
    late = []
    reachable = {text: best_fixed(costs, TEXTS[text], batch) for text in ("easy", "hard")}
    for seed in range(8):
        game = play(
            adaptive(costs), costs, lambda turn: TEXTS["easy" if (turn // switch) % 2 == 0 else "hard"], batch, seed
        )
        for text in ("easy", "hard", "easy"):
            game.play(rounds)
            late.append(game.play(switch - rounds) < 0.93 * reachable[text])
    assert sum(late) <= 0.4 * len(late)


@pytest.mark.parametrize(("overlap", "exposed"), [("", 1.0), ("mirror", 0.1)])
def test_probes_stay_within_their_share_of_the_time(overlap: str, exposed: float) -> None:
    costs, hidden = COSTS["dear drafts"], {"overlap": overlap, "exposed": exposed}
    game = play(adaptive(costs, probe_share=0.01), costs, lambda turn: TEXTS["easy"], 4, seed=3, **hidden)
    game.play(2000)
    assert 0 < game.probe_ms / game.now_ms < 0.02


def test_without_a_share_there_is_no_probe() -> None:
    costs = COSTS["cheap drafts"]
    game = play(adaptive(costs, probe_share=0.0), costs, lambda turn: TEXTS["easy"], 4, seed=3)
    game.play(300)
    assert not any(plan.probes for plan in game.plans)


def view(*remaining: int, num_prefilling: int = 0, drafts: bool = True) -> BatchView:
    return BatchView(
        tuple(SequenceView(50, left, number, drafts=drafts) for number, left in enumerate(remaining)), num_prefilling
    )


def test_no_length_is_beyond_what_a_sequence_can_commit() -> None:
    policy = adaptive(COSTS["cheap drafts"])
    for left in (20, 9, 5, 3, 2, 1):
        lengths = policy.plan(view(left, 40)).lengths
        assert lengths[0] <= left - 1


def test_a_prompt_that_joins_flips_no_plan() -> None:
    policy = adaptive(COSTS["cheap drafts"])
    assert policy.plan(view(90, 90)) == policy.plan(view(90, 90, num_prefilling=3))


def test_sequences_that_the_pool_will_not_serve_are_not_drafted_for() -> None:
    plan = adaptive(COSTS["cheap drafts"]).plan(view(90, 90, drafts=False))
    assert (plan.lengths, plan.depth, plan.probes) == ((0, 0), None, ())


def test_a_batch_of_nobody_is_planned_for() -> None:
    assert adaptive(COSTS["cheap drafts"]).plan(view()).lengths == ()


def test_predicted_and_realised_agree_in_a_steady_game() -> None:
    costs = COSTS["cheap drafts"]
    policy = adaptive(costs)
    play(policy, costs, lambda turn: TEXTS["easy"], 4, seed=5).play(500)
    assert policy.forecast.predicted == pytest.approx(policy.forecast.realised, rel=0.1)


def test_what_a_drafter_with_other_exits_answers_teaches_nothing_and_harms_nothing() -> None:
    policy = adaptive(COSTS["cheap drafts"])
    plan = policy.plan(view(90))
    told = Probe(40, ((True,),) * 5, ((0.5,),) * 5)
    for row in (RowOutcome(0, 1, 2, (9, 9), (0.5, 0.5), 1), RowOutcome(0, 0, 0, probe=told)):
        policy.observe(RoundOutcome(plan, (row,), 50.0, draft_ms=1.0, verify_ms=1.0))
    policy.restart()
    assert [policy.acceptance.weight(rule) for rule in range(3)] == [0, 0, 0]


def test_a_restart_forgets_sequences_and_keeps_what_was_learned() -> None:
    costs = COSTS["cheap drafts"]
    policy = adaptive(costs)
    play(policy, costs, lambda turn: TEXTS["hard"], 2, seed=5).play(300)
    policy.restart()
    assert policy.acceptance.odds(0) == 1.0
    assert float(policy.acceptance.hazards(0)[0]) < 0.3


def test_a_rule_is_tried_once_though_its_rounds_tell_nothing_of_what_drafting_took() -> None:
    policy = adaptive({"layer": 0.06, "row": 0.002, "token": 0.02})
    view = BatchView((SequenceView(100, 10_000, 0),))
    tried = set()
    for _ in range(400):
        plan = policy.plan(view)
        assert plan.depth is not None
        tried.add(plan.depth)
        drafted = plan.lengths[0]
        row = RowOutcome(0, 1, drafted, plan.depth.exits * drafted, (0.5,) * drafted)
        policy.observe(RoundOutcome(plan, (row,), 100.0, 0.01, verify_ms=1.2, rest_ms=0.05, ahead=True))
    assert len(tried) > 1
    assert policy.arm is not None
    assert policy.arm.goodput * 1.05 >= max(arm.goodput for arm in policy.arms)


def test_two_halves_that_take_turns_are_each_decided_on_once_and_others_anew() -> None:
    policy = Goodput(curves(overhead=0.05, layer=0.1, row=0.005, token=0.05), GoodputConfig(RULES, EXITS))
    play(policy, {"layer": 0.1, "row": 0.005, "token": 0.05}, lambda turn: TEXTS["easy"], 2, 0).play(100)
    policy.restart()
    decided: list[tuple[int, ...]] = []
    decide = policy._decide

    def noted(batch: BatchView) -> None:
        decided.append(tuple(sequence.id for sequence in batch.sequences))
        decide(batch)

    policy._decide = noted  # type: ignore[method-assign]
    halves = [
        BatchView(tuple(SequenceView(100, 100, id=id_) for id_ in ids), overlap="lanes") for ids in ((0, 1), (2, 3))
    ]
    for turn in range(20):
        policy.plan(halves[turn % 2])
    others = BatchView(tuple(SequenceView(100, 100, id=id_) for id_ in (4, 5)), overlap="lanes")
    for _ in range(10):
        policy.plan(others)
    assert decided == [(0, 1), (2, 3), (4, 5)]
