"""The lanes turn against the plain loop, over good links and bad, and whether the pool works while the target does."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

import targets.step
from bench.faulty import Faults, FaultyClient
from drafters.client import LocalDraftClient
from drafters.worker import DraftWorker
from model.decoder import Decoder
from protocol.draft import DraftReply, DraftRequest
from protocol.plan import BatchView, Plan
from protocol.request import FinishReason, GenerateRequest, SamplingParams, StopRules, TokenRun
from router.goodput import Goodput, GoodputConfig
from router.mode_choice import Modes
from router.modes import Mode, Round
from router.policy import Fixed
from targets.engine import Engine
from targets.mirror import MirrorConfig, MirrorStepper
from targets.model import TargetModel
from targets.sequence import Sequence as Decoding
from targets.step import Stepper
from targets.timeline import RoundRecord
from tests.deployments.contract import linked
from tests.model.families import VOCAB
from tests.reference.engine import Collector, plain_texts, random_requests, run_all
from tests.router.curves import curves
from tests.targets.conftest import LoadTarget
from tests.targets.mirrored import DEEP, RULES, SHALLOW, Connect, Whimsical, engine_of, has_given_back

LANES = MirrorConfig(modes=(Mode.LANES,))


class Tossed(Modes):
    """Another mode every few rounds, for no reason."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.rng, self.mode = random.Random(seed), Mode.LANES
        self.told: list[Round] = []

    def choose(self, num_rows: int) -> Mode:
        if self.rng.random() < 0.3:
            self.mode = self.rng.choice(list(Mode))
        return self.mode if num_rows > 1 else Mode.SERIAL

    def observe(self, num_rows: int, played: Round) -> None:
        self.told.append(played)


class Fickle(Collector):
    """When some requests have a number of tokens, cancels another, whose draft may be on its way."""

    def __init__(self, engine: Engine, rng: random.Random, requests: Sequence[GenerateRequest]) -> None:
        super().__init__()
        self.engine = engine
        names = [request.request_id for request in requests]
        self.limits = {name: (rng.randint(1, 20), rng.choice(names)) for name in names if rng.random() < 0.4}

    def __call__(self, run: TokenRun) -> None:
        super().__call__(run)
        limit, victim = self.limits.get(run.request_id, (1000, ""))
        if len(self.tokens[run.request_id]) >= limit:
            self.engine.cancel(victim)


def run_fickle(engine: Engine, requests: Sequence[GenerateRequest], seed: int) -> Fickle:
    collector = Fickle(engine, random.Random(seed), requests)
    for request in requests:
        engine.submit(request, collector)
    engine.start()
    collector.wait(len(requests))
    engine.stop()
    return collector


def agree(collector: Collector, texts: dict[str, list[int]]) -> bool:
    """Whole texts, and of cancelled requests the beginning."""
    return all(
        tokens == (texts[name][: len(tokens)] if collector.reasons[name] is FinishReason.ABORT else texts[name])
        for name, tokens in collector.tokens.items()
    )


def toss(engine: Engine, seed: int) -> Tossed:
    assert isinstance(engine._stepper, MirrorStepper)
    engine._stepper._modes = tossed = Tossed(seed)
    return tossed


def records(engine: Engine, mode: Mode | None = Mode.LANES) -> list[RoundRecord]:
    """mode: None: of all."""
    assert engine.timeline is not None
    return [record for record in engine.timeline.last() if mode is None or record.mode is mode]


@pytest.mark.parametrize("seed", range(16))
def test_the_text_is_the_plain_loops_whatever_the_link_does_who_is_cancelled_and_how_modes_change(
    load: LoadTarget, drafter: Decoder, seed: int
) -> None:
    rng = random.Random(seed)
    requests = random_requests(seed, rng.randint(4, 10), VOCAB, max_tokens=28)
    client = FaultyClient(Connect(drafter), seed, Faults(dies=rng.choice([0.0, 0.05])))
    engine = engine_of(load, client, Whimsical(seed), LANES, max_batch=rng.randint(2, 8), prefill_chunk=11)
    tossed = seed % 2 > 0
    if tossed:
        toss(engine, seed)
    collector = run_fickle(engine, requests, seed)
    assert agree(collector, plain_texts(load(), requests))
    assert has_given_back(engine)
    stats = engine.stats()
    assert stats.mirror is not None
    assert tossed or stats.mirror.num_lanes > 0
    assert not engine._drafting._asks  # type: ignore[union-attr]


@pytest.mark.parametrize("seed", range(4))
def test_a_policy_that_learns_from_halves_changes_no_token(load: LoadTarget, drafter: Decoder, seed: int) -> None:
    requests = random_requests(seed, 6, VOCAB, max_tokens=60)
    config = GoodputConfig((DEEP, SHALLOW), (3, 4), length=6, max_rows=8, evidence=12)
    policy = Goodput(curves(layer=0.01, row=0.001, overhead=0.05), config)
    client = FaultyClient(Connect(drafter), seed, Faults(missed=0.01, lost=0.01, stale=0.01))
    engine = engine_of(load, client, policy, LANES, max_batch=4)
    assert run_all(engine, requests).tokens == plain_texts(load(), requests)
    stats = engine.stats().mirror
    assert stats is not None
    assert stats.num_lanes > 0
    assert has_given_back(engine)


@pytest.mark.parametrize("seed", range(6))
def test_forced_preemption_changes_no_token_and_nothing_is_planned_for_who_is_out(
    load: LoadTarget, drafter: Decoder, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = Stepper.planned

    def checked(self: Stepper, decoding: list[Decoding], overlap: str = "") -> Plan:
        assert set(decoding) <= set(self.scheduler.running)
        return planned(self, decoding, overlap)

    monkeypatch.setattr(Stepper, "planned", checked)
    requests = random_requests(5 + seed, 8, VOCAB, max_tokens=30)
    client = FaultyClient(Connect(drafter), seed, Faults(missed=0.01, late_row=0.01))
    engine = engine_of(load, client, Whimsical(seed), LANES, num_positions=128, page_size=4)
    assert run_all(engine, requests).tokens == plain_texts(load(), requests)
    stats = engine.stats()
    assert stats.mirror is not None
    assert min(stats.num_preempted, stats.mirror.num_lanes) > 0
    assert has_given_back(engine)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("num_rows", [2, 3, 8])
def test_the_text_is_the_plain_loops_over_a_good_link_and_the_pool_is_empty_in_the_end(
    load: LoadTarget, drafter: Decoder, num_rows: int, temperature: float
) -> None:
    requests = random_requests(num_rows, num_rows + 2, VOCAB, max_tokens=24, temperature=temperature)
    connect = Connect(drafter)
    engine = engine_of(load, connect(), Fixed(RULES[num_rows % 4], 4), LANES, max_batch=num_rows)
    collector = run_fickle(engine, requests, num_rows)
    assert agree(collector, plain_texts(load(), requests))
    assert has_given_back(engine)
    assert connect.is_empty()


def test_a_draft_that_was_taken_unverified_would_change_the_text(
    load: LoadTarget, drafter: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = random_requests(1, 4, VOCAB, max_tokens=24)
    texts = plain_texts(load(), requests)
    monkeypatch.setattr(targets.step, "num_accepted", lambda picks, draft: len(draft))
    engine = engine_of(load, FaultyClient(Connect(drafter), 0), Fixed(SHALLOW, 3), LANES)
    assert run_all(engine, requests).tokens != texts


class Recorder(LocalDraftClient):
    """Keeps what was asked, None for every answer that was waited for."""

    def __init__(self, worker: DraftWorker) -> None:
        super().__init__(worker, "engine")
        self.said: list[DraftRequest | None] = []
        self.lost = False

    def ask(self, request: DraftRequest) -> None:
        self.said.append(request)
        super().ask(request)

    def answer(self) -> DraftReply | None:
        self.said.append(None)
        reply = super().answer()
        return None if self.lost else reply


def recorded(drafter: Decoder) -> tuple[Connect, Recorder]:
    """A draft replica, and the client to it that keeps what was asked."""
    connect = Connect(drafter)
    connect()
    return connect, Recorder(connect.worker)


class Looking(Fixed):
    """Keeps for how many it planned, and which overlap."""

    def plan(self, view: BatchView) -> Plan:
        self.__dict__.setdefault("seen", []).append((len(view.sequences), view.overlap))
        return super().plan(view)


def even_requests(count: int, max_tokens: int = 41) -> list[GenerateRequest]:
    """Begin and end together where every draft is accepted."""
    return [
        GenerateRequest(str(i), (5, 6, 7 + i), SamplingParams(temperature=1.0, seed=i), StopRules(max_tokens))
        for i in range(count)
    ]


def test_lanes_alternate_and_each_is_asked_for_once_while_the_other_is_verified(
    load: LoadTarget, drafter: Decoder
) -> None:
    _, client = recorded(drafter)
    engine = engine_of(load, client, Fixed(DEEP, 4), LANES)
    run_all(engine, even_requests(5))
    asked = [message for message in client.said if message is not None]
    lanes = [{row.sequence_id for row in request.rows} for request in asked]
    whole, rounds = lanes[0], lanes[1:-2]  # the first draft is for the batch; in the end some are done
    assert len(whole) == 5
    assert {len(lane) for lane in rounds} == {2, 3}
    for lane, following in pairwise(rounds):
        assert lane | following == whole
        assert not lane & following
    for before, message in pairwise(client.said[2:]):
        assert (before is None) is not (message is None)
    stats = engine.stats().mirror
    assert stats is not None
    assert stats.num_lanes >= len(rounds) - 2
    in_turn = [record for record in records(engine, Mode.SERIAL) if record.lengths]
    assert len(records(engine)) == stats.num_rounds - len(in_turn) > stats.num_lanes


@pytest.mark.parametrize("seed", range(4))
def test_modes_are_told_what_rounds_took_and_brought(load: LoadTarget, drafter: Decoder, seed: int) -> None:
    engine = engine_of(load, Connect(drafter)(), Fixed(SHALLOW, 3), LANES)
    told = toss(engine, seed).told
    run_all(engine, even_requests(4))
    whole = [record for record in records(engine, None) if sum(record.lengths) and not record.num_prefill_tokens]
    by_lengths = {(one.mode, one.lengths, one.ms): one for one in told}
    for record in whole:
        marks = record.marks
        one = by_lengths.get((record.mode, record.lengths, 1e3 * (record.ended - marks.began)))
        if one is None:  # the pool was catching up
            continue
        assert len(record.lengths) + sum(one.accepted) >= record.num_committed
        assert one.verify_ms + one.rest_ms + 1e3 * (marks.drafted - marks.planned) == pytest.approx(one.ms)
        assert one.num_hits == sum(source is not None for source in record.hits) <= one.num_planned
        assert (one.draft_ms is not None) is (record.waited and record.mode is not Mode.LANES)
    assert {one.mode for one in told} == set(Mode)
    assert any(one.num_hits for one in told)
    assert len(told) > len(whole) / 2


def test_half_of_the_batch_is_planned_at_a_time_and_every_draft_is_accepted_as_it_was_made(
    load: LoadTarget, drafter: Decoder
) -> None:
    connect, policy = Connect(drafter), Looking(DEEP, 4)
    engine = engine_of(load, connect(), policy, LANES)
    result = run_all(engine, even_requests(6))
    assert policy.seen[0] == (6, "")  # the first round is in turn
    assert policy.seen[1] == (3, "")  # the first lane too
    assert set(policy.seen[2:-2]) == {(3, "lanes")}
    assert {stats.histogram for stats in result.stats.values()} == {(0, 0, 0, 0, 8)}


def test_where_nothing_comes_the_whole_batch_is_verified_at_once(load: LoadTarget, drafter: Decoder) -> None:
    _, client = recorded(drafter)
    engine = engine_of(load, client, Fixed(DEEP, 4), LANES)
    client.lost = True
    assert run_all(engine, even_requests(4)).tokens == plain_texts(load(), even_requests(4))
    assert records(engine) == []
    assert {len(record.lengths) for record in records(engine, Mode.SERIAL)} == {0, 4}


def test_when_the_pool_falls_silent_lanes_end_and_who_was_cancelled_in_mid_draft_is_forgotten(
    load: LoadTarget, drafter: Decoder
) -> None:
    connect, client = recorded(drafter)
    engine = engine_of(load, client, Fixed(DEEP, 4), LANES)

    class Ending(Collector):
        """The oldest is in one lane, the youngest in the other, which is in flight when it is told of the oldest."""

        def __call__(self, run: TokenRun) -> None:
            super().__call__(run)
            if run.request_id == "3" and len(self.tokens["3"]) > 20 and not client.lost:
                client.lost = True
                engine.cancel("0")

    collector = Ending()
    for request in even_requests(4):
        engine.submit(request, collector)
    engine.start()
    collector.wait(4)
    engine.stop()
    assert collector.reasons["0"] is FinishReason.ABORT
    assert agree(collector, plain_texts(load(), even_requests(4)))
    assert engine.timeline is not None
    modes = [record.mode for record in engine.timeline.last()]
    last = len(modes) - modes[::-1].index(Mode.LANES)
    drafted = [sum(record.lengths) for record in engine.timeline.last()]
    assert drafted[last - 1 :] == [0] * (len(modes) - last + 1)
    assert drafted[last - 2] > 0
    assert modes[last:] == [Mode.SERIAL] * (len(modes) - last) != []
    assert not engine._drafting._asks  # type: ignore[union-attr]
    assert connect.is_empty()


def test_drafts_in_flight_are_dropped_where_the_mode_changes_and_not_waited_for(
    load: LoadTarget, drafter: Decoder
) -> None:
    connect, client = recorded(drafter)
    engine = engine_of(load, client, Fixed(SHALLOW, 3), LANES)
    toss(engine, 3)
    requests = random_requests(2, 6, VOCAB, max_tokens=60)
    assert run_all(engine, requests).tokens == plain_texts(load(), requests)
    num_asked = sum(message is not None for message in client.said)
    assert 0 < client.said.count(None) < num_asked
    assert connect.is_empty()
    text = {i: [*r.prompt_ids, *plain_texts(load(), [r])[r.request_id]] for i, r in enumerate(requests)}
    for row in (row for message in client.said if message is not None for row in message.rows):
        assert row.tokens == tuple(text[row.sequence_id][row.start : row.base_length])


@pytest.mark.parametrize(("mode", "hidden"), [(Mode.LANES, True), (Mode.SERIAL, False)])
def test_what_is_drafted_while_the_target_verifies_is_not_waited_for(
    load: LoadTarget, drafter: Decoder, monkeypatch: pytest.MonkeyPatch, mode: Mode, hidden: bool
) -> None:
    """Over a real stream: a draft takes 20 ms of the pool, a pass 40 ms of the target."""
    connect = Connect(drafter)
    connect()
    run, pick = connect.worker._drafter.run, TargetModel.pick

    def drafting(rows: Any) -> Any:
        time.sleep(0.02)
        return run(rows)

    def verifying(self: TargetModel, *args: Any) -> list[int]:
        time.sleep(0.04)
        return pick(self, *args)

    monkeypatch.setattr(connect.worker._drafter, "run", drafting)
    monkeypatch.setattr(TargetModel, "pick", verifying)
    requests = even_requests(4, max_tokens=31)
    with linked(connect.worker, "engine", 10.0) as client:
        engine = engine_of(load, client, Fixed(DEEP, 4), MirrorConfig(modes=(mode,)))
        texts = run_all(engine, requests).tokens
    waits = sorted(1e3 * (r.marks.drafted - r.marks.planned) for r in records(engine, mode) if sum(r.lengths))
    assert len(waits) >= 5
    assert (waits[len(waits) // 2] < 8) is hidden
    monkeypatch.undo()
    assert texts == plain_texts(load(), requests)
