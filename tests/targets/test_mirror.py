"""The mirror turn against the plain loop, with the real pool behind ways to it that are not to be trusted."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from itertools import pairwise

import pytest

import targets.step
from bench.exactness.faulty import Faults, FaultyClient
from drafters.client import LocalDraftClient
from drafters.worker import DraftWorker
from model.decoder import Decoder
from protocol.branch import AheadRequest, AheadRow, Branch, ExitHint
from protocol.draft import DraftBlock, DraftReply, DraftRequest
from protocol.errors import ConfigError
from protocol.plan import DepthRule, Plan, Speculation
from protocol.request import FinishReason, GenerateRequest, SamplingParams, StopRules
from router.modes import Mode
from router.pipeline import Source
from router.policy import Fixed, drafted_lengths
from targets.engine import Engine
from targets.mirror import MirrorConfig
from tests.model.families import VOCAB
from tests.reference.engine import Collector, plain_texts, random_requests, run_all
from tests.targets.conftest import LoadTarget
from tests.targets.mirrored import DEEP, RULES, SHALLOW, Connect, Whimsical, engine_of, has_given_back


@pytest.mark.parametrize("seed", range(16))
def test_the_text_is_the_plain_loops_over_a_link_that_loses_delays_doubles_and_reorders(
    load: LoadTarget, drafter: Decoder, seed: int
) -> None:
    rng = random.Random(seed)
    requests = random_requests(seed, rng.randint(1, 8), VOCAB, max_tokens=28)
    connect = Connect(drafter)
    client = FaultyClient(connect, seed, Faults(dies=rng.choice([0.0, 0.05])))
    modes = rng.choice([(Mode.HINTED,), (Mode.MIRROR,), tuple(Mode)])
    mirror = MirrorConfig(rng.randint(1, 8), rng.randint(0, 8), rng.choice([None, 0, 1, 3, 4]), modes)
    engine = engine_of(load, client, Whimsical(seed), mirror, max_batch=rng.choice([1, 3, 8]), prefill_chunk=11)
    assert run_all(engine, requests).tokens == plain_texts(load(), requests)
    assert has_given_back(engine)
    stats = engine.stats().mirror
    assert stats is not None
    assert min(stats.num_branches, stats.num_fenced) > 0 or Mode.SERIAL in modes


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("rule", RULES)
def test_the_text_is_the_plain_loops_over_a_good_link_and_the_pool_is_empty_in_the_end(
    load: LoadTarget, drafter: Decoder, rule: DepthRule, temperature: float
) -> None:
    requests = random_requests(7, 6, VOCAB, max_tokens=40, temperature=temperature)
    connect = Connect(drafter)
    engine = engine_of(load, connect(), Fixed(rule, 4), MirrorConfig(kappa=2, exit_layer=3), max_batch=4)
    assert run_all(engine, requests).tokens == plain_texts(load(), requests)
    assert has_given_back(engine)
    assert connect.is_empty()
    stats = engine.stats().mirror
    assert stats is not None
    assert stats.num_hits > 0


def test_windows_of_a_drafter_that_is_always_right_are_all_at_hand(load: LoadTarget, drafter: Decoder) -> None:
    request = GenerateRequest("0", (5, 6, 7), SamplingParams(temperature=1.0, seed=3), StopRules(61))
    engine = engine_of(load, Connect(drafter)(), Fixed(DEEP, 4), MirrorConfig(kappa=0))
    result = run_all(engine, [request])
    stats = engine.stats().mirror
    assert stats is not None
    assert result.stats["0"].histogram == (0, 0, 0, 0, 12)
    assert (stats.num_rounds, stats.hits_full, stats.num_misses, stats.num_waits) == (12, 11, 0, 1)


@pytest.mark.parametrize("kappa", [0, 2])
def test_the_first_window_of_a_prompt_is_at_hand_once_it_is_known_how_long_windows_are(
    load: LoadTarget, drafter: Decoder, kappa: int
) -> None:
    requests = [
        GenerateRequest(str(i), (5, 6, 7 + i), SamplingParams(temperature=1.0, seed=i), StopRules(61)) for i in range(3)
    ]
    engine = engine_of(load, Connect(drafter)(), Fixed(DEEP, 4), MirrorConfig(kappa=kappa), max_batch=1)
    result = run_all(engine, requests)
    assert {one.histogram for one in result.stats.values()} == {(0, 0, 0, 0, 12)}
    assert engine.timeline is not None
    rounds = engine.timeline.last()
    first = [after.hits for prompt, after in pairwise(rounds) if prompt.num_prefill_tokens]
    assert first == [(None,), (Source.FULL,), (Source.FULL,)]


def test_prompts_that_end_beside_rows_that_decode_are_hinted_at_too(load: LoadTarget, drafter: Decoder) -> None:
    requests = random_requests(4, 9, VOCAB, max_tokens=24)
    client = recorded(load, drafter, requests, MirrorConfig(kappa=2), max_batch=3, prefill_chunk=7)
    rows = [row for message in client.said if isinstance(message, AheadRequest) for row in message.rows]
    prompts = {i: len(request.prompt_ids) for i, request in enumerate(requests)}
    first = [row for row in rows if row.context.base_length == prompts[row.context.sequence_id]]
    assert len(first) > 3
    assert {row.window for row in first} == {()}
    hinted = [row for message in client.said if isinstance(message, ExitHint) for row in message.rows]
    assert [(row.sequence_id, row.base_length, len(row.picks)) for row in hinted] == [
        (row.context.sequence_id, row.context.base_length, len(row.window) + 1) for row in rows
    ]


class JustLate(LocalDraftClient):
    """Its branches come when they are waited for, and not before. comes: whether they do."""

    comes = True

    def branches(self, timeout_s: float = 0.0) -> Sequence[Branch]:
        return super().branches() if timeout_s > 0 and self.comes else []


@pytest.mark.parametrize("comes", [True, False])
def test_branches_that_are_just_late_are_waited_for_and_are_hits(
    load: LoadTarget, drafter: Decoder, comes: bool
) -> None:
    requests = random_requests(3, 4, VOCAB, max_tokens=60)
    connect = Connect(drafter)
    connect()
    client = JustLate(connect.worker, "engine")
    client.comes = comes
    engine = engine_of(load, client, Fixed(DEEP, 4), MirrorConfig(modes=(Mode.MIRROR,)))
    assert run_all(engine, requests).tokens == plain_texts(load(), requests)
    stats = engine.stats().mirror
    assert stats is not None
    assert (stats.num_hits > 10) is comes


def test_corrections_are_found_among_runner_ups_and_early_picks(load: LoadTarget, drafter: Decoder) -> None:
    requests = random_requests(1, 4, VOCAB, max_tokens=60)
    engine = engine_of(load, Connect(drafter)(), Fixed(SHALLOW, 3), MirrorConfig(kappa=4, exit_layer=3))
    run_all(engine, requests)
    stats = engine.stats().mirror
    assert stats is not None
    assert min(stats.hits_runner_up, stats.hits_early_exit) > 0


def test_what_a_policy_cuts_off_is_the_next_window_without_a_message(load: LoadTarget, drafter: Decoder) -> None:
    class Short(Fixed):
        def prune(self, plan: Plan, drafts: Sequence[DraftBlock | None]) -> Sequence[int]:
            return [min(2, length) for length in drafted_lengths(drafts)]

    class Deaf(LocalDraftClient):
        def branches(self, timeout_s: float = 0.0) -> Sequence[Branch]:
            return []

    connect = Connect(drafter)
    connect()
    engine = engine_of(load, Deaf(connect.worker, "engine"), Short(DEEP, 8))
    requests = random_requests(1, 2, VOCAB, max_tokens=60)
    assert run_all(engine, requests).tokens == plain_texts(load(), requests)
    stats = engine.stats().mirror
    assert stats is not None
    assert stats.hits_rest == stats.num_hits > 10
    assert stats.num_misses > 0


@pytest.mark.parametrize("seed", range(4))
def test_forced_preemption_changes_no_token(load: LoadTarget, drafter: Decoder, seed: int) -> None:
    requests = random_requests(5 + seed, 8, VOCAB, max_tokens=30)
    client = FaultyClient(Connect(drafter), seed)
    engine = engine_of(load, client, Whimsical(seed), num_positions=128, page_size=4)
    assert run_all(engine, requests).tokens == plain_texts(load(), requests)
    assert engine.stats().num_preempted > 0
    assert has_given_back(engine)


@pytest.mark.parametrize("seed", range(4))
def test_stops_in_mid_window_and_a_pool_that_is_too_small_change_no_token(
    load: LoadTarget, drafter: Decoder, seed: int
) -> None:
    rng = random.Random(seed)
    stop = StopRules(40, frozenset(rng.sample(range(VOCAB), 12)))
    requests = [
        GenerateRequest(r.request_id, r.prompt_ids, r.sampling, stop, rng.choice([None, Speculation(3, 5)]))
        for r in random_requests(seed, 8, VOCAB)
    ]
    connect = Connect(drafter, num_pages=12)
    engine = engine_of(load, connect(), Fixed(SHALLOW, 5), max_batch=8)
    result = run_all(engine, requests)
    assert result.tokens == plain_texts(load(), requests)
    assert FinishReason.STOP in result.reasons.values()
    assert has_given_back(engine)
    assert connect.is_empty()


def test_a_cancelled_request_leaves_nothing_behind_here_or_at_the_pool(load: LoadTarget, drafter: Decoder) -> None:
    long = GenerateRequest("long", (4, 5, 6), SamplingParams(seed=1), StopRules(200))
    others = random_requests(3, 3, VOCAB, max_tokens=24)
    connect = Connect(drafter)
    engine = engine_of(load, connect(), Fixed(SHALLOW, 3))
    collector, started = Collector(), threading.Event()

    def on_run(run: object) -> None:
        collector(run)  # type: ignore[arg-type]
        started.set()

    for request in (long, *others):
        engine.submit(request, on_run)
    engine.start()
    assert started.wait(30)
    engine.cancel("long")
    collector.wait(4)
    engine.stop()
    texts = plain_texts(load(), [long, *others])
    assert collector.reasons["long"] is FinishReason.ABORT
    assert {name: texts[name][: len(tokens)] for name, tokens in collector.tokens.items()} == collector.tokens
    assert all(collector.tokens[r.request_id] == texts[r.request_id] for r in others)
    assert has_given_back(engine)
    assert connect.is_empty()


class Recorder(LocalDraftClient):
    """Keeps what the target said, in order."""

    def __init__(self, worker: DraftWorker) -> None:
        super().__init__(worker, "engine")
        self.said: list[DraftRequest | AheadRequest | ExitHint] = []

    def open(self, request: DraftRequest) -> None:
        self.said.append(request)
        super().open(request)

    def draft(self, request: DraftRequest) -> DraftReply | None:
        self.said.append(request)
        return super().draft(request)

    def ahead(self, request: AheadRequest) -> None:
        self.said.append(request)
        super().ahead(request)

    def hint(self, hint: ExitHint) -> None:
        self.said.append(hint)
        super().hint(hint)


def recorded(
    load: LoadTarget, drafter: Decoder, requests: list[GenerateRequest], mirror: MirrorConfig, **config: int
) -> Recorder:
    connect = Connect(drafter)
    connect()
    client = Recorder(connect.worker)
    engine = engine_of(load, client, Fixed(SHALLOW, 3), mirror, **config)
    assert run_all(engine, requests).tokens == plain_texts(load(), requests)
    return client


def test_the_pool_is_handed_each_committed_token_once_and_then_the_window(load: LoadTarget, drafter: Decoder) -> None:
    request = GenerateRequest("0", (5, 6, 7), SamplingParams(temperature=1.0, seed=3), StopRules(40))
    client = recorded(load, drafter, [request], MirrorConfig(kappa=2))
    text = [*request.prompt_ids, *plain_texts(load(), [request])["0"]]
    known: list[int] = []
    for message in client.said:
        if isinstance(message, ExitHint):
            continue
        for row in message.rows:
            context = row.context if isinstance(row, AheadRow) else row
            assert context.start == len(known)
            known += context.tokens
    assert known == text[: len(known)]
    assert len(known) > 20


def test_a_hint_follows_what_is_verified_and_has_picks_for_every_place(load: LoadTarget, drafter: Decoder) -> None:
    client = recorded(load, drafter, random_requests(2, 3, VOCAB, max_tokens=24), MirrorConfig(kappa=3))
    num_hints = 0
    for before, message in zip(client.said, client.said[1:], strict=False):
        if isinstance(message, ExitHint):
            num_hints += 1
            assert isinstance(before, AheadRequest)
            assert message.round_id == before.round_id
            for row, asked in zip(message.rows, before.rows, strict=True):
                assert (row.sequence_id, row.base_length) == (asked.context.sequence_id, asked.context.base_length)
                assert [len(picks) for picks in row.picks] == [3] * (len(asked.window) + 1)
    assert num_hints == sum(isinstance(message, AheadRequest) for message in client.said) > 5


def test_without_kappa_there_is_no_hint_and_large_batches_get_fewer_branches(
    load: LoadTarget, drafter: Decoder
) -> None:
    requests = random_requests(2, 12, VOCAB, max_tokens=12)
    client = recorded(load, drafter, requests, MirrorConfig(kappa=0))
    aheads = [message for message in client.said if isinstance(message, AheadRequest)]
    assert not any(isinstance(message, ExitHint) for message in client.said)
    assert {row.fan_out for message in aheads for row in message.rows} == {4, 8}


def test_the_timeline_tells_of_the_last_rounds_in_order(load: LoadTarget, drafter: Decoder) -> None:
    engine = engine_of(load, Connect(drafter)(), Fixed(SHALLOW, 3))
    result = run_all(engine, random_requests(2, 3, VOCAB, max_tokens=24))
    assert engine.timeline is not None
    rounds, stats = engine.timeline.last(), engine.stats()
    assert sum(one.num_committed for one in rounds) == stats.num_committed == sum(map(len, result.tokens.values()))
    assert sum(sum(one.lengths) for one in rounds) == stats.num_drafted
    assert stats.mirror is not None
    assert sum(source is not None for one in rounds for source in one.hits) == stats.mirror.num_hits
    assert engine.timeline.last(2) == rounds[-2:]
    for one in rounds:
        halfway = [at for at in (one.early, one.hinted) if at is not None]
        marks = one.marks
        moments = [marks.began, marks.planned, one.looked, marks.drafted, *halfway, marks.verified, one.ended]
        assert moments == sorted(moments)
    assert any(one.hinted for one in rounds)


def test_a_window_that_was_taken_unverified_would_change_the_text(
    load: LoadTarget, drafter: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = random_requests(1, 3, VOCAB, max_tokens=24)
    monkeypatch.setattr(targets.step, "num_accepted", lambda picks, draft: len(draft))
    engine = engine_of(load, FaultyClient(Connect(drafter), 0), Fixed(SHALLOW, 3))
    assert run_all(engine, requests).tokens != plain_texts(load(), requests)


def test_a_client_that_cannot_draft_ahead_and_an_exit_outside_the_model_are_refused(
    load: LoadTarget, drafter: Decoder
) -> None:
    class Serial:
        def open(self, request: DraftRequest) -> None: ...
        def draft(self, request: DraftRequest) -> DraftReply | None: ...
        def close(self, sequence_ids: Sequence[int]) -> None: ...

    with pytest.raises(ConfigError, match="Serial does not draft ahead"):
        Engine(load(), Fixed(DEEP, 3), Serial(), mirror=MirrorConfig())
    with pytest.raises(ConfigError, match="exit_layer 5 is not one of the model's 4"):
        engine_of(load, Connect(drafter)(), Fixed(DEEP, 3), MirrorConfig(exit_layer=5))
    with pytest.raises(ConfigError, match="kappa at least 0"):
        MirrorConfig(kappa=-1)
