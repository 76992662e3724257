"""Drafting ahead and lanes in the simulator: against the latency law, against drafting in turn, and what must hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from protocol.draft import DraftBlock
from protocol.errors import ConfigError
from protocol.outcome import RoundOutcome
from protocol.plan import BatchView, DepthRule, Plan
from router.law import Law
from router.misses import RETRY
from router.modes import Mode
from router.policy import Fixed, Policy, Steadfast
from router.simulate import Report, SimulatedPool, SimulatedTarget, TargetReport, closed_batch, poisson, simulate
from router.simulate_acceptance import Profile, acceptance_table, always
from router.simulate_ahead import Choices
from router.simulate_mirror import MirrorRules
from router.simulate_pool import PoolRules
from tests.router.curves import curves, verify_cost
from tests.sizes import quick

EXITS = (2, 4, 6)
RULE = DepthRule((2,))
RUNNER_UP = 0.6
AHEAD = MirrorRules(choices=Choices(RUNNER_UP))
LONE = MirrorRules(fan_out=1, choices=Choices(RUNNER_UP))
LANES, SERIAL = MirrorRules(modes=(Mode.LANES,)), MirrorRules(modes=(Mode.SERIAL,))
WHOLE = SimulatedPool(rules=PoolRules(ahead=1, branch_ahead=8, branch_ms=1e6))  # a branch comes in one piece
STEPWISE = SimulatedPool(rules=PoolRules(ahead=1, branch_ahead=1))  # messages are taken between any two tokens
REST, LINK = 0.05, 0.1


def flat(rate: float) -> Profile:
    return always(acceptance_table(dict.fromkeys(EXITS, (rate,))))


def play(
    overlap: MirrorRules | None,
    rate: float = 0.7,
    length: int = 3,
    *,
    batch: int = 1,
    token_ms: float = 0.1,
    link: float = LINK,
    max_tokens: int = 1000,
    seed: int = 0,
    row: float = 0.0,
    pool: SimulatedPool = STEPWISE,
) -> TargetReport:
    """token_ms: of one more drafted token for each row; whatever the rows, unless `row` says what each adds."""
    priced = curves(overhead=REST, link=link, layer=token_ms / 2, row=row, token=0.0)
    requests = closed_batch(batch, 20, max_tokens, np.random.default_rng(seed))
    target = SimulatedTarget(
        "one", priced, lambda: Fixed(RULE, length), flat(rate), requests, max_batch=batch, overlap=overlap
    )
    return simulate([target], pool, seed).targets[0]


def round_ms(report: TargetReport) -> float:
    served = report.served
    return (max(one.last_ms for one in served) - max(one.first_ms for one in served)) / report.num_rounds


def foreseen(rate: float, length: int) -> float:
    """All accepted and the lead too, or the runner-up in place of the first mistake."""
    full = rate ** (length + 1)
    return full + RUNNER_UP * (1 - full)


@pytest.mark.parametrize("rate", quick([0.7, 0.9], 1))  # so that waiting for a fresh draft always pays
@pytest.mark.parametrize(("length", "token_ms"), [(2, 0.05), (3, 0.15), (6, 0.12)])
def test_rounds_take_what_the_latency_law_allows_where_branches_are_in_time(
    rate: float, length: int, token_ms: float
) -> None:
    verify, wait = verify_cost(1, 1, token=0.0), length * token_ms + LINK
    assert token_ms + wait < verify
    hits, took = [], []
    for seed in range(4):
        report = play(AHEAD, rate, length, token_ms=token_ms, seed=seed)
        hits.append(sum(report.hits.values()))
        took.append(round_ms(report))
        law = Law(verify, wait, REST, hits[-1])
        assert took[-1] == pytest.approx(law.mirror_ms, rel=0.015)
    assert np.mean(hits) == pytest.approx(foreseen(rate, length), rel=0.07)
    assert np.mean(took) == pytest.approx(Law(verify, wait, REST, foreseen(rate, length)).mirror_ms, rel=0.04)


@pytest.mark.parametrize(("length", "token_ms"), [(4, 0.3), (6, 0.2)])
@pytest.mark.parametrize("rate", quick([0.5, 0.7, 0.9], 1))
def test_half_a_branch_in_time_is_worth_more_than_a_whole_one_late(length: int, token_ms: float, rate: float) -> None:
    parts, whole = (
        play(AHEAD, rate, length, token_ms=token_ms, max_tokens=400, pool=pool) for pool in (STEPWISE, WHOLE)
    )
    assert round_ms(parts) < 0.8 * round_ms(whole)
    assert parts.tokens_per_second > whole.tokens_per_second


def test_a_window_is_as_long_as_what_the_pool_has_handed_over_by_the_time_it_is_looked_for() -> None:
    """Everything is right. Of the 1.15 ms of a round the link takes 0.08 and the lead, with one token behind it, 0.4;
    another token follows every 0.2, the last of them with the message that ends the round on its way.
    """
    report = play(LONE, 1.0, 6, token_ms=0.2, link=0.08, max_tokens=800)
    assert sum(report.hits.values()) == pytest.approx(1, abs=0.01)
    assert round_ms(report) == pytest.approx(verify_cost(1, 1, token=0.0) + REST, rel=0.01), "nothing is waited for"
    assert report.mean_acceptance_length is not None
    assert 1 + 3 <= report.mean_acceptance_length <= 1 + 4


def test_drafting_ahead_commits_the_same_tokens_in_the_same_rounds_as_drafting_in_turn() -> None:
    for seed in range(4):
        turn, ahead = (play(overlap, seed=seed) for overlap in (None, AHEAD))
        assert (ahead.num_rounds, ahead.mean_acceptance_length) == (turn.num_rounds, turn.mean_acceptance_length)
        assert ahead.tokens_per_second > turn.tokens_per_second


def test_the_serial_mode_of_a_mirror_is_drafting_in_turn_to_the_microsecond() -> None:
    for batch in (1, 3):
        turn, mode = (play(overlap, batch=batch) for overlap in (None, SERIAL))
        assert [one.last_ms for one in mode.served] == [one.last_ms for one in turn.served]


def test_behind_a_link_so_long_that_no_branch_is_in_time_only_the_drafting_of_what_was_foreseen_is_saved() -> None:
    rate, length, token_ms, link = 0.9, 6, 0.1, 3.0
    turn, ahead = (play(overlap, rate, length, token_ms=token_ms, link=link) for overlap in (None, AHEAD))
    assert sum(ahead.hits.values()) == 0
    verify = verify_cost(1, 1, token=0.0)
    assert round_ms(turn) == pytest.approx(verify + length * token_ms + link + REST, rel=0.01)
    saved = foreseen(rate, length) * length * token_ms
    tried = verify / RETRY  # now and then, whether branches come after all
    assert round_ms(ahead) == pytest.approx(round_ms(turn) - saved + tried, rel=0.02)


def test_ahead_is_not_waited_for_where_drafts_are_never_right() -> None:
    turn, ahead = (play(overlap, 0.0, 4, max_tokens=300) for overlap in (None, MirrorRules(choices=Choices(0.0))))
    assert sum(ahead.hits.values()) == 0
    assert verify_cost(1, 1, token=0.0) + REST < round_ms(ahead) < round_ms(turn) - 0.6 * (4 * 0.1 + LINK)


@pytest.mark.slow
def test_early_picks_bring_hits_that_the_second_choice_does_not() -> None:
    choices = Choices(RUNNER_UP, early=(0.5, 0.2), agrees=0.7)
    for kappa, early in ((1, 0.5), (2, 0.7)):
        hinted = MirrorRules(kappa=kappa, modes=(Mode.HINTED,), choices=choices)
        reports = [play(hinted, token_ms=0.05, link=0.01, seed=seed) for seed in range(3)]
        shares = [np.mean([report.hits[name] for report in reports]) for name in ("full", "runner_up", "early_exit")]
        missed = 1 - 0.7**4
        assert shares[0] == pytest.approx(0.7**4, rel=0.1)
        assert sum(shares) == pytest.approx(0.7**4 + missed * (RUNNER_UP + (1 - RUNNER_UP) * early), rel=0.03)


@pytest.mark.slow
def test_a_smaller_fan_out_foresees_less() -> None:
    shares = [
        sum(play(MirrorRules(fan_out=fan_out, choices=Choices(RUNNER_UP)), 0.6, 5).hits.values())
        for fan_out in (1, 2, 4, 8)
    ]
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(0.4 * RUNNER_UP, rel=0.15), "the first guess, most probably wrong, corrected"


@pytest.mark.parametrize("batch", [1, 2, 5, 8])
def test_lanes_are_at_most_twice_as_fast_as_drafting_in_turn(batch: int) -> None:
    for seed in range(3):
        for token_ms in (0.02, 0.4, 2.0):
            turn, lanes = (
                play(one, batch=batch, token_ms=token_ms, seed=seed, max_tokens=150) for one in (None, LANES)
            )
            assert lanes.tokens_per_second <= 2 * turn.tokens_per_second * 1.001
            if batch == 1:
                alone = play(SERIAL, token_ms=token_ms, seed=seed, max_tokens=150)
                assert lanes.tokens_per_second == alone.tokens_per_second


def test_lanes_hide_the_shorter_of_drafting_and_verifying() -> None:
    """Verifying two halves takes twice as long here, so that rounds of both take twice the longer of the two."""
    for token_ms in (0.1, 0.8):
        lanes = play(LANES, batch=8, token_ms=token_ms, length=3, max_tokens=400)
        verify, draft = verify_cost(4, 4, token=0.0), 3 * token_ms + LINK
        assert round_ms(lanes) == pytest.approx(max(verify + REST, draft + 0.0), rel=0.06)
        assert lanes.num_rounds > 1.8 * play(None, batch=8, token_ms=token_ms, max_tokens=400).num_rounds


class Erratic(Steadfast):
    """Depths, lengths, floors and probes without sense, pruned at random."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def opening(self) -> DepthRule | None:
        return RULE if self._rng.random() < 0.5 else None

    def plan(self, view: BatchView) -> Plan:
        rng = self._rng
        lengths = tuple(int(rng.integers(0, min(9, one.remaining))) for one in view.sequences)
        probes = tuple(np.flatnonzero(rng.random(len(lengths)) < 0.2).tolist())
        depth = DepthRule((int(rng.choice(EXITS)),)) if rng.random() < 0.7 else DepthRule(EXITS, (0.5, 0.5))
        own = tuple(DepthRule((4,)) for _ in lengths) if rng.random() < 0.3 else ()
        return Plan(depth, lengths, own, float(rng.choice([0.0, 0.2])), probes)

    def prune(self, plan: Plan, drafts: list[DraftBlock | None]) -> list[int]:
        return [int(self._rng.integers(0, len(block.tokens) + 1)) if block else 0 for block in drafts]


class Counting:
    """A policy, and what its rounds committed."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.committed = policy, 0
        self.opening, self.plan, self.prune = policy.opening, policy.plan, policy.prune

    def observe(self, outcome: RoundOutcome) -> None:
        assert all(0 <= row.accepted <= row.num_verified <= len(row.exits) for row in outcome.rows)
        assert min(outcome.draft_ms, outcome.verify_ms, outcome.rest_ms, outcome.wait_ms) >= 0
        self.committed += len(outcome.rows) + sum(row.accepted for row in outcome.rows)


OVERLAPS = (None, AHEAD, MirrorRules(modes=tuple(Mode)), LANES)


def scene(seed: int) -> tuple[Report, list[Counting], list[SimulatedTarget]]:
    """Targets of every kind that share a small pool, some with a deadline that they often miss."""
    rng = np.random.default_rng(seed)
    policies = [Counting(Erratic(100 * seed + number)) for number in range(6)]
    targets = [
        SimulatedTarget(
            f"{number}",
            curves(overhead=REST, link=float(rng.choice([0.0, 0.3]))),
            lambda policy=policy: policy,
            flat(float(rng.uniform(0.2, 0.95))),
            poisson(60, 0.3, (10, 300), (1, 2, 40, 90), rng),
            max_batch=int(rng.integers(1, 6)),
            deadline_ms=float(rng.choice([2.0, 1e3])),
            overlap=OVERLAPS[number % len(OVERLAPS)],
        )
        for number, policy in enumerate(policies)
    ]
    return simulate(targets, SimulatedPool(2), seed, noise=0.2), policies, targets


@pytest.mark.parametrize("seed", quick(range(5), 1))
def test_every_request_gets_its_tokens_whatever_is_planned_and_however_rounds_overlap(seed: int) -> None:
    report, policies, targets = scene(seed)
    for own, policy, target in zip(report.targets, policies, targets, strict=True):
        assert sorted(one.request.at_ms for one in own.served) == [one.at_ms for one in target.requests]
        assert policy.committed + len(target.requests) == sum(one.max_tokens for one in target.requests)
        assert sum(own.hits.values()) <= 1 + 1e-9
    assert all(0 <= replica.utilisation <= 1 + 1e-9 for replica in report.replicas)


def test_one_seed_gives_one_run() -> None:
    assert scene(3)[0] == scene(3)[0]
    assert scene(3)[0] != scene(4)[0]


@pytest.mark.slow
def test_a_hundred_targets_share_a_pool_and_wait_the_longer_the_smaller_it_is() -> None:
    requests = closed_batch(1, 20, 40, np.random.default_rng(0))
    one = SimulatedTarget("one", curves(link=LINK), lambda: Fixed(RULE, 3), flat(0.7), requests, overlap=AHEAD)
    targets = [replace(one, name=str(number), requests=[replace(requests[0], seed=number)]) for number in range(100)]
    exposed = []
    for num_replicas in (2, 8, 100):
        report = simulate(targets, SimulatedPool(num_replicas))
        assert sum(own.num_tokens for own in report.targets) == 4000
        exposed.append(float(np.mean([own.exposed_ms for own in report.targets])))
    assert exposed == sorted(exposed, reverse=True)


def test_overlap_is_refused_where_there_is_nothing_to_overlap_and_for_shares_that_are_none() -> None:
    requests = closed_batch(1, 20, 40, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="nothing can overlap"):
        SimulatedTarget("one", curves(), lambda: Fixed(RULE, 3), flat(0.7), requests, shares_device=True, overlap=AHEAD)
    with pytest.raises(ConfigError, match="fan_out of"):
        MirrorRules(fan_out=0)
    with pytest.raises(ConfigError, match="a mode or more"):
        MirrorRules(modes=())
    with pytest.raises(ConfigError, match="between 0 and 1"):
        Choices(early=(0.8, 0.4))


@pytest.mark.parametrize("link", [0.05, 0.3, 0.4, 0.7])
@pytest.mark.parametrize(("overlap", "num_left"), [(LONE, 0), (AHEAD, 1)])
def test_where_everything_is_right_a_round_takes_the_longest_of_a_pass_of_the_way_of_a_branch_and_of_the_pool_s_work(
    overlap: MirrorRules, num_left: int, link: float
) -> None:
    """Besides, the pool drafts behind the lead's second choice, in a pass that the next message has to wait for."""
    verify, length, token_ms = verify_cost(1, 1, token=0.0), 3, 0.2
    report = play(overlap, 1.0, length, token_ms=token_ms, link=link, max_tokens=400, pool=WHOLE)
    assert sum(report.hits.values()) == pytest.approx(1, abs=0.03), "but for the last"
    way, work = link + (1 + length) * token_ms, (1 + length + num_left * length) * token_ms
    assert round_ms(report) == pytest.approx(max(verify + REST, way, work), rel=0.02)


def test_the_first_window_behind_a_prompt_is_at_hand_once_windows_have_a_known_length() -> None:
    requests = [replace(one, at_ms=1e3 * n) for n, one in enumerate(closed_batch(4, 20, 40, np.random.default_rng(0)))]
    priced = curves(overhead=REST, link=LINK, layer=0.05, row=0.0, token=0.0)
    target = SimulatedTarget("one", priced, lambda: Fixed(RULE, 3), flat(1.0), requests, overlap=LONE)
    first, *later = (one.last_ms - one.first_ms for one in simulate([target], WHOLE).targets[0].served)
    assert later == pytest.approx([first - 3 * 0.1 - LINK] * 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "rate", "length", "token_ms", "runner_up"),
    [(1, 0.8, 4, 0.25, RUNNER_UP), (2, 0.3, 3, 0.4, 0.0), (8, 0.3, 3, 0.4, 0.0), (8, 0.8, 3, 0.05, RUNNER_UP)],
)
def test_a_target_that_chooses_its_mode_comes_close_to_the_best_one(
    batch: int, rate: float, length: int, token_ms: float, runner_up: float
) -> None:
    def tokens_per_second(*modes: Mode) -> float:
        rules = MirrorRules(modes=modes, choices=Choices(runner_up, ()))
        return play(rules, rate, length, batch=batch, token_ms=token_ms, max_tokens=400).tokens_per_second

    alone = {mode: tokens_per_second(mode) for mode in Mode}
    assert tokens_per_second(*Mode) > 0.93 * max(alone.values())
    assert min(alone.values()) < 0.9 * max(alone.values()), "there is something to choose"
