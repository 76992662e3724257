"""Requests whose answer began at another replica: the rest of it is that of the plain loop, wherever it was cut."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from protocol.errors import InvalidRequest, PromptTooLong, QueueFull
from protocol.request import FinishReason, GenerateRequest, SamplingParams, StopRules, TokenRun
from router.policy import Fixed, Off
from targets import plain
from targets.engine import Engine, EngineConfig
from targets.scheduler import Scheduler, SchedulerConfig
from targets.sequence import Sequence as OneSequence
from tests.model.families import VOCAB
from tests.reference.engine import ScriptedDrafter, plain_texts, random_requests
from tests.targets.conftest import LoadTarget

DEPTH = 1


class Runs:
    """What an engine says of each request."""

    def __init__(self, engine: Engine, requests: Sequence[GenerateRequest]) -> None:
        self.by_request: dict[str, list[TokenRun]] = {request.request_id: [] for request in requests}
        for request in requests:
            engine.submit(request, lambda run: self.by_request[run.request_id].append(run))

    def tokens(self, name: str, first: int) -> list[int]:
        """Each run begins where the one before it ended."""
        tokens: list[int] = []
        for run in self.by_request[name]:
            assert run.index == first + len(tokens)
            tokens += run.token_ids
        return tokens


def run_to_the_end(engine: Engine, requests: Sequence[GenerateRequest]) -> Runs:
    runs = Runs(engine, requests)
    with engine:
        while engine.open_requests:
            engine._thread.join(0.01)
    return runs


@pytest.mark.parametrize("seed", range(6))
def test_the_rest_is_the_plain_loops_wherever_it_was_cut(load: LoadTarget, seed: int) -> None:
    """Also where memory is short and sequences are preempted, and whatever the drafter does."""
    rng = random.Random(seed)
    requests = random_requests(seed, 12, VOCAB)
    texts = plain_texts(load(), requests)
    cuts = {r.request_id: rng.randrange(len(texts[r.request_id])) for r in requests}
    resumed = [replace(r, resume_ids=tuple(texts[r.request_id][: cuts[r.request_id]])) for r in requests]
    drafter = ScriptedDrafter(requests, texts, seed, accuracy=0.7, trouble=0.1)
    model = load(num_positions=rng.choice([96, 4096]), page_size=rng.choice([1, 16]))
    config = EngineConfig(max_batch=rng.choice([1, 3, 16]), prefill_chunk=7)
    runs = run_to_the_end(Engine(model, Fixed(DEPTH, rng.choice([0, 3])), drafter, config), resumed)
    for name, text in texts.items():
        assert runs.tokens(name, cuts[name]) == text[cuts[name] :]
        assert runs.by_request[name][-1].finish_reason is FinishReason.LENGTH
    assert (model.ledger.num_free, drafter.num_open) == (model.ledger.num_pages, 0)
    model.ledger.check()


def test_stop_tokens_and_limits_hold_where_they_would_have(load: LoadTarget) -> None:
    for request in random_requests(7, 6, VOCAB):
        text = plain_texts(load(), [request])[request.request_id]
        stopped = replace(request, stop=StopRules(20, frozenset([text[11]])))
        whole = plain.generate(load(), stopped)
        end = whole.num_generated
        for cut in range(end):
            resumed = replace(stopped, resume_ids=tuple(text[:cut]))
            runs = run_to_the_end(Engine(load(), Off()), [resumed])
            assert runs.tokens(request.request_id, cut) == text[cut:end]
            assert runs.by_request[request.request_id][-1].finish_reason is whole.finish_reason


def test_a_resumed_prompt_is_prefilled_and_not_decoded(load: LoadTarget) -> None:
    (request,) = random_requests(4, 1, VOCAB, max_tokens=20)
    text = plain_texts(load(), [request])["0"]
    engine = Engine(load(), Off())
    run_to_the_end(engine, [replace(request, resume_ids=tuple(text[:15]))])
    assert (engine.stats().num_committed, engine.stats().num_steps) == (5, 6)


@pytest.mark.parametrize(
    ("resume_ids", "stop", "error", "says"),
    [
        ((5,) * 8, StopRules(8), InvalidRequest, "ended within the 8 tokens"),
        ((5, 6), StopRules(8, frozenset([5])), InvalidRequest, "ended within the 2 tokens"),
        ((5, VOCAB), StopRules(8), InvalidRequest, f"vocabulary of {VOCAB}"),
        ((5,) * 62, StopRules(90), PromptTooLong, "64 tokens and this model holds 64"),
    ],
)
def test_what_cannot_go_on_is_refused_by_name(
    load: LoadTarget, resume_ids: tuple[int, ...], stop: StopRules, error: type[Exception], says: str
) -> None:
    request = GenerateRequest("r", (5, 6), SamplingParams(), stop, resume_ids=resume_ids)
    with pytest.raises(error, match=says):
        Engine(load(num_positions=64), Off()).submit(request, print)


def test_a_full_queue_has_places_for_answers_that_began_elsewhere(load: LoadTarget) -> None:
    fresh = random_requests(2, 8, VOCAB)
    engine = Engine(load(), Off(), config=EngineConfig(max_batch=2, max_queue=1))
    for request in fresh[:3]:
        engine.submit(request, lambda run: None)
    for request in fresh[3:5]:
        engine.submit(replace(request, resume_ids=(5,)), lambda run: None)
    for request in (fresh[5], replace(fresh[6], resume_ids=(5,))):
        with pytest.raises(QueueFull):
            engine.submit(request, lambda run: None)


def test_answers_that_began_elsewhere_go_before_new_ones(load: LoadTarget) -> None:
    scheduler = Scheduler(load().ledger, SchedulerConfig(max_batch=1))
    first, second = random_requests(2, 2, VOCAB)
    scheduler.add(OneSequence(0, first, 64))
    scheduler.add(OneSequence(1, replace(second, resume_ids=(5,)), 64))
    assert [sequence.id for sequence in scheduler.admit()] == [1]


def test_an_engine_that_is_stopped_hands_over_what_it_has(load: LoadTarget) -> None:
    """What waits is handed over too, with the number of tokens that it came with."""
    requests = random_requests(5, 2, VOCAB, max_tokens=4000)
    engine = Engine(load(), Off(), config=EngineConfig(max_batch=1))
    runs = Runs(engine, [requests[0], replace(requests[1], resume_ids=(5, 6, 7))])
    with engine:
        while not any(runs.by_request.values()):
            engine._thread.join(0.001)
    ends = [told[-1] for told in runs.by_request.values()]
    assert [end.finish_reason for end in ends] == [FinishReason.CLOSED] * 2
    runs.tokens("0", 0)
    runs.tokens("1", 3)


def test_no_repr_carries_the_tokens_that_came() -> None:
    request = GenerateRequest("r", (5,), SamplingParams(), StopRules(8), resume_ids=(31337,))
    assert "31337" not in repr(request)
