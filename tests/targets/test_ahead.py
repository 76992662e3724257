"""Drafting ahead against the plain loop, with the real pool behind ways to it that are not to be trusted."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest

import targets.step
from bench.exactness.faulty import FaultyClient, LinkFaults
from drafters.client import LocalDraftClient
from model.decoder import Decoder
from protocol.branch import Branch
from protocol.draft import DraftReply, DraftRequest
from protocol.errors import ConfigError
from protocol.plan import BatchView, Mode, Plan, Speculation
from protocol.record import Origin
from protocol.request import FinishReason, GenerateRequest, SamplingParams, StopRules, TokenRun
from router.policy import Fixed, StaticPolicy
from targets.ahead import missing
from targets.engine import Engine
from targets.proposals import Proposal
from tests.model.families import VOCAB
from tests.reference.engine import Collector, plain_texts, random_requests, run_all
from tests.targets.ahead import (
    DEEP,
    EXITS,
    SHALLOW,
    Connect,
    Whimsical,
    engine_of,
    has_given_back,
    one_request,
)
from tests.targets.conftest import LoadTarget


@pytest.mark.parametrize("seed", range(16))
def test_the_text_is_the_plain_loops_over_a_link_that_loses_delays_doubles_and_reorders(
    load: LoadTarget, drafter: Decoder, seed: int
) -> None:
    rng = random.Random(seed)
    requests = random_requests(seed, rng.randint(1, 8), VOCAB, max_tokens=28)
    client = FaultyClient(Connect(drafter), seed, LinkFaults(dies=rng.choice([0.0, 0.05])))
    policy = Whimsical(seed, modes=rng.choice([(Mode.AHEAD,), tuple(Mode)]))
    engine = engine_of(load, client, policy, max_batch=rng.choice([1, 3, 8]), prefill_chunk=11)
    assert run_all(engine, requests).tokens == plain_texts(load(), requests)
    assert has_given_back(engine)
    assert engine.stats().num_accepted > 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("depth", EXITS)
def test_the_text_is_the_plain_loops_over_a_good_link_and_the_pool_is_empty_in_the_end(
    load: LoadTarget, drafter: Decoder, depth: int, temperature: float
) -> None:
    requests = random_requests(7, 6, VOCAB, max_tokens=40, temperature=temperature)
    connect = Connect(drafter)
    engine = engine_of(load, connect(), Fixed(depth, 4, Mode.AHEAD), max_batch=4)
    assert run_all(engine, requests).tokens == plain_texts(load(), requests)
    assert has_given_back(engine)
    assert connect.is_empty()
    assert engine.stats().num_hits > 0 or depth == EXITS[0], "which is hardly ever right"


def test_proposals_of_a_drafter_that_is_always_right_are_all_at_hand(load: LoadTarget, drafter: Decoder) -> None:
    engine = engine_of(load, Connect(drafter)(), Fixed(DEEP, 4, Mode.AHEAD))
    result = run_all(engine, [one_request()])
    stats = engine.stats()
    assert result.stats["3"].histogram == (0, 0, 0, 0, 12)
    assert (stats.num_rounds, stats.num_drafts, stats.num_hits) == (12, 12, 11)
    assert (stats.num_misses, stats.num_hit_rounds, stats.num_fresh_rounds) == (1, 11, 1)


def test_the_first_proposal_of_a_prompt_is_at_hand_once_it_is_known_how_long_drafts_are(
    load: LoadTarget, drafter: Decoder
) -> None:
    requests = [one_request(seed, 7 + seed) for seed in range(3)]
    engine = engine_of(load, Connect(drafter)(), Fixed(DEEP, 4, Mode.AHEAD), max_batch=1)
    result = run_all(engine, requests)
    assert {one.histogram for one in result.stats.values()} == {(0, 0, 0, 0, 12)}
    rounds = engine.last_rounds()
    first = [after.rows[0].origin for prompt, after in pairwise(rounds) if not prompt.rows]
    assert first == [Origin.FRESH, Origin.AHEAD, Origin.AHEAD]


class ByTurns(StaticPolicy):
    """Fixed, with another length and mode in every third round."""

    def __init__(self, usual: tuple[int, Mode], third: tuple[int, Mode]) -> None:
        self._usual, self._third = usual, third
        self._num_rounds = 0

    def opening(self) -> int | None:
        return DEEP

    def plan(self, view: BatchView) -> Plan:
        self._num_rounds += 1
        length, mode = self._usual if self._num_rounds % 3 else self._third
        return replace(Fixed(DEEP, length).plan(view), mode=mode)


def test_what_is_at_hand_of_rounds_ahead_is_dropped_by_a_round_in_turn(load: LoadTarget, drafter: Decoder) -> None:
    engine = engine_of(load, Connect(drafter)(), ByTurns((4, Mode.AHEAD), (4, Mode.IN_TURN)))
    run_all(engine, [one_request()])
    rounds = [record for record in engine.last_rounds() if record.rows]
    assert {record.plan.mode for record in rounds} == {Mode.IN_TURN, Mode.AHEAD}
    for before, record in zip([None, *rounds], rounds, strict=False):
        both = before is not None and (before.plan.mode, record.plan.mode) == (Mode.AHEAD, Mode.AHEAD)
        assert record.rows[0].origin is (Origin.AHEAD if both else Origin.FRESH)


class JustLate(LocalDraftClient):
    """Its branches come when they are waited for, and not before. comes: whether they do."""

    comes = True
    num_waits = 0

    def branches(self, timeout_s: float = 0.0) -> Sequence[Branch]:
        self.num_waits += timeout_s > 0
        return super().branches() if timeout_s > 0 and self.comes else []


@pytest.mark.parametrize("comes", [True, False])
def test_branches_that_are_just_late_are_waited_for_but_not_those_of_an_earlier_round(
    load: LoadTarget, drafter: Decoder, comes: bool
) -> None:
    requests = random_requests(3, 4, VOCAB, max_tokens=60)
    client = JustLate(Connect(drafter).worker, "engine")
    client.comes = comes
    engine = engine_of(load, client, Fixed(DEEP, 4, Mode.AHEAD))
    assert run_all(engine, requests).tokens == plain_texts(load(), requests)
    assert (engine.stats().num_hits > 10) is comes
    assert client.num_waits > 10 if comes else 0 < client.num_waits < 5
    client.num_waits = 0
    run_all(engine_of(load, client, ByTurns((4, Mode.IN_TURN), (4, Mode.AHEAD))), [one_request()])
    assert client.num_waits == 0


class OnlyLong(LocalDraftClient):
    """Loses all but long branches."""

    def branches(self, timeout_s: float = 0.0) -> Sequence[Branch]:
        return [branch for branch in super().branches() if len(branch.tokens) > 2]


def test_what_a_plan_leaves_out_of_a_proposal_at_hand_is_the_next_one_without_a_message(
    load: LoadTarget, drafter: Decoder
) -> None:
    client = OnlyLong(Connect(drafter).worker, "engine")
    engine = engine_of(load, client, ByTurns((2, Mode.AHEAD), (8, Mode.AHEAD)))
    assert run_all(engine, [one_request()]).tokens == plain_texts(load(), [one_request()])
    rounds = [record for record in engine.last_rounds() if record.rows]
    left = [after for before, after in pairwise(rounds) if max(before.plan.lengths) == 2 and after.rows[0].at_hand]
    assert len(left) > 1


@pytest.mark.parametrize("seed", range(4))
def test_forced_preemption_changes_no_token(load: LoadTarget, drafter: Decoder, seed: int) -> None:
    requests = random_requests(5 + seed, 8, VOCAB, max_tokens=30)
    client = FaultyClient(Connect(drafter), seed)
    engine = engine_of(load, client, Whimsical(seed), num_positions=128, page_size=4)
    assert run_all(engine, requests).tokens == plain_texts(load(), requests)
    assert engine.stats().num_preempted > 0
    assert has_given_back(engine)


@pytest.mark.parametrize("seed", range(4))
def test_stops_in_mid_proposal_and_a_pool_that_is_too_small_change_no_token(
    load: LoadTarget, drafter: Decoder, seed: int
) -> None:
    rng = random.Random(seed)
    stop = StopRules(40, frozenset(rng.sample(range(VOCAB), 12)))
    requests = [
        GenerateRequest(r.request_id, r.prompt_ids, r.sampling, stop, rng.choice([None, Speculation(3, 5)]))
        for r in random_requests(seed, 8, VOCAB)
    ]
    connect = Connect(drafter, num_pages=12)
    engine = engine_of(load, connect(), Fixed(SHALLOW, 5, Mode.AHEAD), max_batch=8)
    result = run_all(engine, requests)
    assert result.tokens == plain_texts(load(), requests)
    assert FinishReason.STOP in result.reasons.values()
    assert has_given_back(engine)
    assert connect.is_empty()


def test_a_cancelled_request_leaves_nothing_behind_here_or_at_the_pool(load: LoadTarget, drafter: Decoder) -> None:
    long = GenerateRequest("long", (4, 5, 6), SamplingParams(seed=1), StopRules(200))
    others = random_requests(3, 3, VOCAB, max_tokens=24)
    connect = Connect(drafter)
    engine = engine_of(load, connect(), Fixed(SHALLOW, 3, Mode.AHEAD))
    collector, started = Collector(), threading.Event()

    def on_run(run: TokenRun) -> None:
        collector(run)
        started.set()

    for request in (long, *others):
        engine.submit(request, on_run)
    with engine:
        assert started.wait(30)
        engine.cancel("long")
        engine.cancel("never known")
        collector.wait(4)
    texts = plain_texts(load(), [long, *others])
    assert collector.reasons["long"] is FinishReason.ABORT
    assert {name: texts[name][: len(tokens)] for name, tokens in collector.tokens.items()} == collector.tokens
    assert all(collector.tokens[r.request_id] == texts[r.request_id] for r in others)
    assert has_given_back(engine)
    assert connect.is_empty()


def test_records_tell_of_the_last_rounds_in_order_and_the_counts_are_their_sums(
    load: LoadTarget, drafter: Decoder
) -> None:
    engine = engine_of(load, Connect(drafter)(), Fixed(SHALLOW, 3, Mode.AHEAD))
    result = run_all(engine, random_requests(2, 3, VOCAB, max_tokens=24))
    rounds, stats = engine.last_rounds(), engine.stats()
    assert [record.round_id for record in rounds] == list(range(stats.num_steps))
    assert engine.last_rounds(2) == rounds[-2:]
    assert sum(one.num_committed for one in rounds) == stats.num_committed == sum(map(len, result.tokens.values()))
    assert (
        sum(one.num_proposed for one in rounds) == stats.num_proposed == sum(s.drafted for s in result.stats.values())
    )
    assert sum(one.num_accepted for one in rounds) == stats.num_accepted
    assert sum(row.at_hand for one in rounds for row in one.rows) == stats.num_hits
    for one in rounds:
        moments = [one.began_s, one.planned_s, one.drafted_s, one.verified_s, one.ended_s]
        assert moments == sorted(moments)
        for row in one.rows:
            assert len(row.confidences) == row.num_proposed <= row.length


def test_a_proposal_that_was_taken_unverified_would_change_the_text(
    load: LoadTarget, drafter: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = random_requests(1, 3, VOCAB, max_tokens=24)
    monkeypatch.setattr(targets.step, "num_accepted", lambda picks, draft: len(draft))
    engine = engine_of(load, FaultyClient(Connect(drafter), 0), Fixed(SHALLOW, 3, Mode.AHEAD))
    assert run_all(engine, requests).tokens != plain_texts(load(), requests)


def test_a_client_that_cannot_draft_ahead_is_refused(load: LoadTarget) -> None:
    class OnlyInTurn:
        def open(self, request: DraftRequest) -> None: ...
        def draft(self, request: DraftRequest) -> DraftReply | None: ...
        def close(self, sequence_ids: Sequence[int]) -> None: ...

    with pytest.raises(ConfigError, match="OnlyInTurn does not draft ahead"):
        Engine(load(), Fixed(DEEP, 3), OnlyInTurn(), ahead=True)


def test_fresh_drafts_are_waited_for_when_fewer_than_half_of_the_rows_have_one_at_hand() -> None:
    own = Proposal((1,), (0.5,), Origin.AHEAD, SHALLOW, 4)
    assert missing((4, 4, 0), [None, None, None], [False] * 3) == (4, 4, 0)
    assert missing((4, 3, 4), [own, None, None], [False] * 3) == (0, 3, 4)
    assert missing((4, 3, 0), [own, None, None], [False] * 3) == (0, 0, 0)
    assert missing((4, 3), [own, own], [True] * 2) == missing((0, 0), [None, None], [False] * 2) == (0, 0)


def test_a_row_for_which_nothing_will_come_otherwise_has_a_fresh_draft_whatever_the_others_have() -> None:
    own = Proposal((1,), (0.5,), Origin.AHEAD, SHALLOW, 4)
    assert missing((4, 3, 2), [own, own, None], [False, False, True]) == (0, 0, 2)
    assert missing((4, 3, 2, 4), [own, own, None, None], [True, False, True, False]) == (0, 0, 2, 0)
    assert missing((4, 0), [own, None], [False, True]) == (0, 0)
