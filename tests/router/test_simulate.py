"""Whole simulated runs against closed forms, and what must hold whatever is simulated."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from protocol.draft import DraftBlock
from protocol.errors import ConfigError
from protocol.outcome import RoundOutcome
from protocol.plan import BatchView, DepthRule, Plan
from router.goodput import Goodput, GoodputConfig
from router.policy import Fixed, Off, Policy, Steadfast
from router.simulate import (
    Report,
    SimulatedPool,
    SimulatedTarget,
    closed_batch,
    placed,
    poisson,
    simulate,
    simulate_cell,
)
from router.simulate_acceptance import Profile, Stage, acceptance_table, always
from router.simulate_target import Request
from tests.router.curves import curves, draft_cost, verify_cost
from tests.sizes import quick

EXITS = (2, 4, 6)
RULES = tuple(DepthRule((exit_,)) for exit_ in EXITS)
HAZARDS = {2: (0.6,), 4: (0.7,), 6: (0.75,)}
CURVES = curves(overhead=0.05, link=0.4)


def flat(rate: float) -> Profile:
    return always(acceptance_table(dict.fromkeys(EXITS, (rate,))))


def goodput(**config: object) -> Goodput:
    return Goodput(CURVES, GoodputConfig(RULES, EXITS, **config))


class Watched:
    """Any policy, its outcomes kept."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.outcomes: list[RoundOutcome] = []

    def opening(self) -> DepthRule | None:
        return self.policy.opening()

    def plan(self, view: BatchView) -> Plan:
        return self.policy.plan(view)

    def prune(self, plan: Plan, drafts: list[DraftBlock | None]) -> list[int]:
        return list(self.policy.prune(plan, drafts))

    def observe(self, outcome: RoundOutcome) -> None:
        self.outcomes.append(outcome)
        self.policy.observe(outcome)


def round_ms(outcome: RoundOutcome) -> float:
    return outcome.rest_ms + outcome.draft_ms + outcome.verify_ms


def test_a_round_takes_its_draft_its_pass_and_its_bookkeeping_and_nothing_else() -> None:
    for batch in (1, 3, 8):
        policy = Watched(Fixed(RULES[1], 4))
        simulate_cell(CURVES, policy, batch, flat(0.6), 20, 40, seed=1)
        settled = [one for one in policy.outcomes if not one.num_prefill_tokens and one.rows][1:]
        assert len(settled) > 5
        for outcome in settled:
            lengths = [len(row.exits) for row in outcome.rows]
            present = [sum(length > position for length in lengths) for position in range(max(lengths))]
            draft = sum(draft_cost(rows, 4, 1) for rows in present)
            verify = verify_cost(len(lengths), len(lengths) + sum(lengths))
            assert round_ms(outcome) == pytest.approx(draft + verify + 0.05)
            assert outcome.wait_ms == 0


def test_plain_decoding_takes_one_pass_and_its_bookkeeping_a_token() -> None:
    cell = simulate_cell(CURVES, Off(), 4, flat(0.6), 20, 33)
    assert cell.tokens_per_second == pytest.approx(4 * 1e3 / (verify_cost(4, 4) + 0.05))
    assert (cell.mean_acceptance_length, cell.num_rounds) == (1.0, 32)
    assert cell.ttft_ms == pytest.approx(CURVES.prefill_ms(4 * 20) + 0.05, abs=0.5)


def test_a_rate_counts_the_tokens_after_the_last_prompt_and_their_time() -> None:
    policy = Watched(Fixed(RULES[1], 4))
    cell = simulate_cell(CURVES, policy, 4, flat(0.7), [20, 600, 900, 1200], 200, seed=1)
    with_prompts = [number for number, one in enumerate(policy.outcomes) if one.num_prefill_tokens]
    assert any(policy.outcomes[number].rows for number in with_prompts)  # some decode beside others' prompts
    after = policy.outcomes[with_prompts[-1] + 1 :]
    assert cell.num_decoded == sum(len(one.rows) + sum(row.accepted for row in one.rows) for one in after)
    assert cell.decode_ms == pytest.approx(sum(map(round_ms, after)))
    assert cell.tokens_per_second == pytest.approx(1e3 * cell.num_decoded / cell.decode_ms)


@pytest.mark.parametrize(("rate", "length"), [(0.6, 3), (0.8, 6), (0.3, 1)])
def test_rounds_bring_as_many_tokens_as_the_survivals_add_up_to(rate: float, length: int) -> None:
    long = simulate_cell(CURVES, Fixed(RULES[0], length), 8, flat(rate), 20, 4000, seed=3)
    survivals = flat(rate).at(0, 0.0).survivals(2, length)
    assert long.mean_acceptance_length == pytest.approx(1 + sum(survivals), rel=0.02)


def test_positions_have_hazards_of_their_own() -> None:
    table = acceptance_table({2: (0.9, 0.2, 0.7), 4: (0.9,), 6: (0.9,)})
    cell = simulate_cell(CURVES, Fixed(RULES[0], 4), 8, always(table), 20, 4000, seed=3)
    assert cell.mean_acceptance_length == pytest.approx(1 + 0.9 + 0.18 + 0.126 + 0.0882, rel=0.02)


def test_certain_drafts_and_hopeless_ones_are_counted_to_the_round() -> None:
    certain = simulate_cell(CURVES, Fixed(RULES[0], 3), 1, flat(1.0), 20, 1 + 4 * 25)
    assert (certain.num_rounds, certain.mean_acceptance_length) == (25, 4.0)
    hopeless = simulate_cell(CURVES, Fixed(RULES[0], 3), 1, flat(0.0), 20, 101)
    assert (hopeless.num_rounds, hopeless.mean_acceptance_length) == (100, 1.0)
    assert hopeless.tokens_per_second == pytest.approx(certain.tokens_per_second / 4, rel=0.02)


class Erratic(Steadfast):
    """Depths, lengths, floors and probes without sense, pruned at random."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def opening(self) -> DepthRule | None:
        return RULES[0] if self._rng.random() < 0.5 else None

    def plan(self, view: BatchView) -> Plan:
        rng = self._rng
        lengths = tuple(int(rng.integers(0, min(12, one.remaining))) for one in view.sequences)
        probes = tuple(np.flatnonzero(rng.random(len(lengths)) < 0.2).tolist())
        depth = RULES[int(rng.integers(3))] if rng.random() < 0.7 else DepthRule(EXITS, (0.5, 0.5))
        own = tuple(RULES[int(rng.integers(3))] for _ in lengths) if rng.random() < 0.3 else ()
        floor = float(rng.choice([0.0, 0.2]))
        return Plan(depth if any(lengths) or probes else None, lengths, own, floor, probes)

    def prune(self, plan: Plan, drafts: list[DraftBlock | None]) -> list[int]:
        return [int(self._rng.integers(0, len(one.tokens) + 1)) if one else 0 for one in drafts]


def crowd(seed: int, **changes: object) -> list[SimulatedTarget]:
    """Some targets under load, with every kind of policy."""
    rng = np.random.default_rng([seed, 9])
    profile = always(acceptance_table(HAZARDS, 5.0))
    policies = [lambda: Fixed(RULES[1], 4), Off, goodput, lambda: Erratic(seed)]
    return [
        SimulatedTarget(
            f"t{number}",
            CURVES,
            policies[number % len(policies)],
            profile,
            poisson(40.0, 0.6, (5, 40, 300), (1, 2, 17, 50), np.random.default_rng([seed, number])),
            max_batch=int(rng.integers(1, 9)),
            prefill_chunk=int(rng.integers(16, 200)),
            **changes,
        )
        for number in range(5)
    ]


@pytest.mark.parametrize(
    "changes", [{}, {"shares_device": True}, {"deadline_ms": 3.0}], ids=["apart", "in process", "deadline"]
)
def test_every_request_is_served_whole_whatever_is_planned(changes: dict[str, object]) -> None:
    for seed in range(8):
        targets = crowd(seed, **changes)
        report = simulate(targets, SimulatedPool(2), seed, noise=0.2)
        for target, told in zip(targets, report.targets, strict=True):
            assert sorted(one.request.seed for one in told.served) == sorted(one.seed for one in target.requests)
            assert told.num_tokens == sum(one.max_tokens for one in target.requests)
            for one in told.served:
                assert one.request.at_ms < one.first_ms <= one.last_ms
                assert (one.first_ms == one.last_ms) == (one.request.max_tokens == 1)
            assert told.drafted == {} or sum(told.drafted.values()) == pytest.approx(1.0)
        assert all(0 <= one.utilisation <= 1 for one in report.replicas)


def test_without_a_pool_everybody_decodes_plainly() -> None:
    report = simulate(crowd(1), None, 1)
    assert all(one.mean_acceptance_length == 1.0 for one in report.targets)
    assert report.replicas == ()


def without_requests(report: Report) -> Report:
    return replace(report, targets=tuple(replace(one, served=()) for one in report.targets))


def test_a_seed_decides_everything() -> None:
    def run(seed: int) -> Report:
        return simulate(crowd(3), SimulatedPool(2), seed, noise=0.1)

    assert run(5) == run(5)
    assert without_requests(run(5)) != without_requests(run(6))


def test_two_policies_meet_the_same_luck() -> None:
    rounds: list[dict[int, list[tuple[int, int]]]] = []
    for length in (3, 6):
        policy = Watched(Fixed(RULES[0], length))
        simulate_cell(CURVES, policy, 1, flat(0.7), 20, 500, seed=4)
        at, told = 1, {}
        for outcome in policy.outcomes:
            for row in outcome.rows:
                told[at] = row.accepted
                at += row.accepted + 1
        rounds.append(told)
    both = [(rounds[0][at], rounds[1][at]) for at in rounds[0].keys() & rounds[1].keys()]
    assert len(both) > 20
    assert all(short == min(long, 3) for short, long in both[:-1])


def saturated(num_replicas: int, policy: Policy, seed: int) -> float:
    targets = [
        SimulatedTarget(
            f"t{number}",
            CURVES,
            lambda: policy,
            flat(0.7),
            closed_batch(16, 30, 40, np.random.default_rng([seed, number])),
            max_batch=8,
        )
        for number in range(6)
    ]
    return simulate(targets, SimulatedPool(num_replicas), seed).tokens_per_second


def test_more_replicas_are_not_slower_under_saturation() -> None:
    for seed in range(3):
        for policy in (Fixed(RULES[2], 5), Fixed(RULES[0], 2)):
            rates = [saturated(number, policy, seed) for number in (1, 2, 6)]
            assert all(more >= 0.97 * fewer for fewer, more in pairwise(rates)), rates
            assert rates[-1] > rates[0]


def test_targets_go_to_the_replica_with_the_least_work() -> None:
    base = SimulatedTarget("t", CURVES, Off, flat(0.5), ())
    targets = [replace(base, requests=[Request(0.0, 1, work)]) for work in (5, 30, 10, 20, 5)]
    assert placed(targets, 2) == [0, 0, 1, 1, 1]
    assert placed(targets, 1) == [0] * 5


def test_waiting_at_the_pool_is_told_and_a_deadline_bounds_it() -> None:
    def run(deadline_ms: float) -> Report:
        requests = [closed_batch(4, 30, 60, np.random.default_rng(number)) for number in range(8)]
        targets = [
            SimulatedTarget(f"t{i}", CURVES, lambda: Fixed(RULES[2], 6), flat(0.7), one, deadline_ms=deadline_ms)
            for i, one in enumerate(requests)
        ]
        return simulate(targets, SimulatedPool(1))

    patient, hurried = run(math.inf), run(1.0)
    assert all(one.wait_ms > 0.5 and one.missed == 0 for one in patient.targets)
    assert all(one.missed > 0.9 for one in hurried.targets), "no draft of six tokens is made in a millisecond"
    assert hurried.tokens_per_second > patient.tokens_per_second, "a pool that is too slow is soon left alone"


def test_a_shared_device_takes_turns_and_needs_no_link() -> None:
    requests = closed_batch(1, 20, 400, np.random.default_rng(0))
    apart = SimulatedTarget("t", CURVES, lambda: Fixed(RULES[0], 3), flat(0.7), requests)
    far, near = (
        simulate([replace(apart, shares_device=shares)], SimulatedPool(1)).targets[0] for shares in (False, True)
    )
    assert far.tpot_ms is not None
    assert near.tpot_ms is not None
    assert far.tpot_ms.p50 - near.tpot_ms.p50 == pytest.approx(0.4 * far.num_rounds / 399, rel=0.02)


def test_noise_changes_times_and_not_their_mean() -> None:
    quiet = simulate_cell(CURVES, Fixed(RULES[0], 3), 4, flat(0.7), 20, 2000, seed=1)
    noisy = simulate_cell(CURVES, Fixed(RULES[0], 3), 4, flat(0.7), 20, 2000, seed=1, noise=0.2)
    assert noisy.mean_acceptance_length == quiet.mean_acceptance_length
    assert noisy.tokens_per_second == pytest.approx(quiet.tokens_per_second, rel=0.03)
    assert noisy.tokens_per_second != quiet.tokens_per_second


def test_a_text_that_turns_is_accepted_accordingly() -> None:
    code, noise = acceptance_table(dict.fromkeys(EXITS, (0.9,))), acceptance_table(dict.fromkeys(EXITS, (0.1,)))
    policy = Watched(Fixed(RULES[0], 4))
    simulate_cell(CURVES, policy, 1, Profile((Stage(code), Stage(noise, from_token=1000))), 20, 2000, seed=1)
    at, before, after = 1, [], []
    for outcome in policy.outcomes:
        for row in outcome.rows:
            (before if at < 990 else after).append(row.accepted)
            at += row.accepted + 1
    assert np.mean(before) == pytest.approx(0.9 + 0.81 + 0.729 + 0.6561, rel=0.1)
    assert np.mean(after[5:]) == pytest.approx(0.111, abs=0.05)


def test_probes_tell_all_exits_and_take_time() -> None:
    policy = Watched(goodput(probe_share=0.05))
    simulate_cell(CURVES, policy, 2, always(acceptance_table(HAZARDS, 5.0)), 20, 800, seed=1)
    probed = [row for outcome in policy.outcomes for row in outcome.rows if row.probe is not None]
    told = [np.asarray(row.probe.matches) for row in probed if row.probe is not None and row.probe.matches[0]]
    rates = np.concatenate(told, axis=1).mean(axis=1)
    assert rates == pytest.approx([0.6, 0.7, 0.75], abs=0.12)
    assert np.all(np.diff(np.concatenate(told, axis=1).astype(int), axis=0) >= 0), "nested"


@pytest.mark.parametrize("batch", quick([8, 1, 32], 1))
def test_goodput_comes_close_to_the_best_fixed_arm(batch: int) -> None:
    profile = always(acceptance_table(HAZARDS, 5.0))
    arms = [Off(), *(Fixed(rule, length) for rule in RULES for length in (1, 2, 3, 4, 6, 8))]
    best = max(simulate_cell(CURVES, arm, batch, profile, 50, 300, seed=2).tokens_per_second for arm in arms)
    policy = goodput()
    simulate_cell(CURVES, policy, batch, profile, 50, 300, seed=1)
    policy.restart()
    assert simulate_cell(CURVES, policy, batch, profile, 50, 300, seed=2).tokens_per_second >= 0.92 * best


def test_what_cannot_be_simulated_is_refused() -> None:
    target = SimulatedTarget("t", CURVES, Off, flat(0.5), [Request(0.0, 5, 5)])
    with pytest.raises(ConfigError, match="nothing to simulate"):
        simulate([replace(target, requests=())], None)
    with pytest.raises(ConfigError, match="a pool of 0 replicas"):
        simulate([target], SimulatedPool(0))
    with pytest.raises(ConfigError, match="different exits"):
        simulate([target, replace(target, profile=always(acceptance_table({2: (0.5,)})))], SimulatedPool(1))
    with pytest.raises(ConfigError, match="profiled without a drafter"):
        simulate([replace(target, curves=replace(CURVES, drafter=None))], SimulatedPool(1))
    with pytest.raises(ConfigError, match="one for each sequence"):
        simulate_cell(CURVES, Off(), 2, flat(0.5), [5], 5)
    with pytest.raises(ConfigError, match="nothing arrives"):
        poisson(0.0, 1.0, [1], [1], np.random.default_rng(0))
