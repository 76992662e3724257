"""The engine against the plain loop, whatever the drafter says and however little memory there is."""

import random
from collections import Counter

import pytest

from protocol.draft import DraftRow
from protocol.errors import InvalidRequest, NotReady, PromptTooLong, QueueFull
from protocol.plan import BatchView, Plan
from protocol.request import FinishReason, GenerateRequest, SamplingParams, StopRules, TokenRun
from router.policy import Fixed, Off, StaticPolicy
from targets.engine import Engine, EngineConfig
from targets.sequence import Sequence
from tests.model.families import VOCAB
from tests.reference.engine import Collector, ScriptedDrafter, plain_texts, random_requests, run_all

DEPTH = 1


class Randomised(StaticPolicy):
    """Another length for every sequence and round."""

    def __init__(self, seed: int, longest: int) -> None:
        self._rng = random.Random(seed)
        self._longest = longest

    def opening(self) -> int:
        return DEPTH

    def plan(self, view: BatchView) -> Plan:
        lengths = tuple(min(self._rng.randint(0, self._longest), s.remaining - 1) for s in view.sequences)
        return Plan(DEPTH if any(lengths) else None, lengths)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("page_size", [1, 16])
def test_the_text_is_the_plain_loops_whatever_the_drafter_does(load, seed, page_size):
    requests = random_requests(seed, 9, VOCAB)
    texts = plain_texts(load(), requests)
    drafter = ScriptedDrafter(requests, texts, seed, accuracy=0.7, trouble=0.1)
    model = load(page_size=page_size)
    config = EngineConfig(max_batch=random.Random(seed).choice([1, 3, 16]), prefill_chunk=7)
    result = run_all(Engine(model, Randomised(seed, 6), drafter, config), requests)
    assert result.tokens == texts
    assert sum(s.accepted for s in result.stats.values()) > 0
    assert sum(s.drafted - s.accepted for s in result.stats.values()) > 0
    assert (model.ledger.num_free, drafter.num_open) == (model.ledger.num_pages, 0)
    model.ledger.check()


def test_tokens_are_one_plus_rounds_plus_accepted_when_nothing_is_cut(load):
    requests = random_requests(3, 5, VOCAB)
    requests = [GenerateRequest(r.request_id, r.prompt_ids, r.sampling, StopRules(17)) for r in requests]
    drafter = ScriptedDrafter(requests, plain_texts(load(), requests), seed=1)
    result = run_all(Engine(load(), Fixed(DEPTH, 3), drafter), requests)
    for request_id, stats in result.stats.items():
        assert len(result.tokens[request_id]) == 17 == 1 + stats.rounds + stats.accepted


def test_the_queue_is_bounded_and_the_refused_request_leaves_no_trace(load):
    requests = random_requests(2, 4, VOCAB)
    engine = Engine(load(), Off(), config=EngineConfig(max_batch=1, max_queue=2))
    collector = Collector()
    for request in requests[:3]:
        engine.submit(request, collector)
    with pytest.raises(QueueFull, match="3 requests are running or queued"):
        engine.submit(requests[3], collector)
    with engine:
        collector.wait(3)
        engine.submit(requests[3], collector)
        collector.wait(4)


@pytest.mark.parametrize(
    ("ids", "error", "says"),
    [
        ((1,) * 64, PromptTooLong, "64 tokens and this model holds 64"),
        ((), InvalidRequest, "empty"),
        ((VOCAB,), InvalidRequest, f"vocabulary of {VOCAB}"),
    ],
)
def test_a_prompt_that_cannot_be_served_is_refused_by_name(load, ids, error, says):
    with pytest.raises(error, match=says):
        Engine(load(num_positions=64), Off()).submit(prompt(ids), print)


def test_a_prompt_that_fills_the_memory_but_for_one_token_gets_that_token(load):
    engine = Engine(load(num_positions=64), Off())
    collector = run_all(engine, [prompt((5,) * 63)])
    assert Counter(collector.reasons.values()) == {FinishReason.LENGTH: 1}
    assert len(collector.tokens["r"]) == 1


def test_a_failing_step_ends_its_requests_with_an_error_and_the_engine_goes_on(load, monkeypatch):
    requests = random_requests(4, 3, VOCAB)
    texts = plain_texts(load(), requests)
    model = load()
    engine = Engine(model, Off())
    stepper = engine._stepper
    commit, failures = stepper.commit, iter([True])

    def failing(*args):
        if next(failures, False):
            raise RuntimeError("planted")
        return commit(*args)

    monkeypatch.setattr(stepper, "commit", failing)
    collector = Collector()
    engine.submit(requests[0], collector)
    with engine:
        collector.wait(1)
        assert collector.reasons == {requests[0].request_id: FinishReason.ERROR}
        for request in requests[1:]:
            engine.submit(request, collector)
        collector.wait(3)
    assert {r.request_id: collector.tokens[r.request_id] for r in requests[1:]} == {
        r.request_id: texts[r.request_id] for r in requests[1:]
    }
    assert model.ledger.num_free == model.ledger.num_pages


def test_a_receiver_that_fails_loses_its_own_request_and_no_other(load):
    requests = random_requests(6, 2, VOCAB)
    texts = plain_texts(load(), requests)
    model = load()
    engine = Engine(model, Off())

    def broken(run):
        raise RuntimeError("planted")

    collector = Collector()
    engine.submit(requests[0], broken)
    engine.submit(requests[1], collector)
    with engine:
        collector.wait(1)
    assert collector.tokens == {"1": texts["1"]}
    assert model.ledger.num_free == model.ledger.num_pages


def test_an_id_in_use_is_refused_and_the_first_request_goes_on(load):
    requests = random_requests(8, 1, VOCAB)
    engine, collector = Engine(load(), Off()), Collector()
    engine.submit(requests[0], collector)
    with pytest.raises(InvalidRequest, match="request 0 is running already"):
        engine.submit(requests[0], collector)
    with engine:
        collector.wait(1)
        engine.submit(GenerateRequest("0", requests[0].prompt_ids, requests[0].sampling, StopRules(2)), Collector())
    assert collector.tokens == plain_texts(load(), requests)


@pytest.mark.parametrize("broken", [["turn"], ["commit", "remove"]])
def test_a_dead_engine_lets_nobody_wait_and_nobody_in(load, monkeypatch, broken):
    """Its turn fails, or the first request's step and removal do; two more run, and the others wait."""
    requests = random_requests(9, 5, VOCAB)
    engine, collector = Engine(load(), Off(), config=EngineConfig(max_batch=3)), Collector()

    def fail(*_):
        raise RuntimeError("planted")

    for name in broken:
        monkeypatch.setattr(*((engine, "_turn") if name == "turn" else (engine._stepper, name)), fail)
    for request in requests:
        engine.submit(request, collector)
    engine.start()
    collector.wait(5)
    engine._thread.join(10)
    assert set(collector.reasons.values()) == {FinishReason.ERROR}
    assert engine.heartbeat_age_s() == float("inf")
    with pytest.raises(NotReady):
        engine.submit(requests[1], collector)


def test_a_stop_during_the_last_step_is_not_waited_for(load, monkeypatch):
    engine, waits = Engine(load(), Off()), []
    monkeypatch.setattr(engine._wake, "wait", lambda timeout: waits.append(engine._stopping), raising=False)

    def on_run(run):
        if run.finish_reason is not None:
            engine._stopping = True

    engine.submit(random_requests(9, 1, VOCAB)[0], on_run)
    engine.start()
    engine._thread.join(30)
    assert waits == []
    assert not engine._thread.is_alive()


def test_no_repr_carries_a_prompt_or_a_text():
    request = prompt((31337, 31338))
    sequence = Sequence(0, request, 64)
    sequence.commit([31339])
    run = TokenRun("r", 0, (31340,))
    row = DraftRow(0, 0, (31341,), 2, request.sampling)
    assert "3133" not in repr([request, sequence])
    assert "3134" not in repr([run, row])


def prompt(ids: tuple[int, ...]) -> GenerateRequest:
    return GenerateRequest("r", ids, SamplingParams(), StopRules(8))
