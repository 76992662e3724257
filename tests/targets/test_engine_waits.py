"""Who waits for an engine: by priority, not beyond the wait that is allowed, and at no cost when time is over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from protocol.errors import QueueFull
from protocol.request import FinishReason, GenerateRequest, StopRules
from router.policy import Off
from targets.admission import Pace
from targets.assemble import make_stepper
from targets.engine import Engine, EngineConfig
from targets.model import TargetModel
from targets.scheduler import SchedulerConfig
from targets.sequence import Sequence
from tests.deployments.harness import Clock
from tests.model.families import VOCAB
from tests.reference.engine import Collector, plain_texts, random_requests, run_all

Load = Callable[..., TargetModel]
SLOW = Pace(decode_s=1.0, row_tokens=10.0, prompt_s=0.0, prompt_tokens=1.0, num_ends=0.0)  # 0.1 s a token


def requests(count: int, **changes: object) -> list[GenerateRequest]:
    made = random_requests(5, count, VOCAB)
    return [replace(request, stop=StopRules(20), **changes) for request in made]


def test_requests_end_by_priority_with_the_plain_loops_texts(load: Load) -> None:
    made = [replace(each, priority=priority) for each, priority in zip(requests(4), (3, 0, -2, 1), strict=True)]
    collector = run_all(Engine(load(), Off(), config=EngineConfig(max_batch=1)), made)
    assert list(collector.reasons) == ["2", "1", "3", "0"]
    assert collector.tokens == plain_texts(load(), made)


def engine_with_a_queue(load: Load, max_wait_s: float | None) -> Engine:
    """Not started, so that nothing moves: two requests of 20 tokens are submitted."""
    engine = Engine(load(), Off(), config=EngineConfig(max_batch=1))
    for request in requests(2):
        engine.submit(request, Collector())
    engine._pace, engine.config = SLOW, replace(engine.config, max_wait_s=max_wait_s)
    return engine


def test_a_request_that_would_wait_longer_than_is_allowed_is_refused(load: Load) -> None:
    """Two of 20 tokens before it, 0.1 s each token: 4 seconds."""
    third = requests(3)[2]
    with pytest.raises(QueueFull, match=r"would take about 4\.0 s, and 5 s are allowed") as caught:
        engine_with_a_queue(load, 5.0).submit(third, Collector())
    assert caught.value.retry_after_s == pytest.approx(4.0 - 0.7 * 5.0)
    engine_with_a_queue(load, 6.0).submit(third, Collector())
    engine_with_a_queue(load, None).submit(third, Collector())


def test_one_that_goes_first_does_not_wait_for_those_behind_it(load: Load) -> None:
    engine_with_a_queue(load, 1.0).submit(replace(requests(3)[2], priority=-1), Collector())


def test_one_whose_answer_has_begun_elsewhere_is_taken_however_long_it_waits(load: Load) -> None:
    engine_with_a_queue(load, 1.0).submit(replace(requests(3)[2], resume_ids=(5,)), Collector())


def test_one_that_is_cancelled_while_it_waits_costs_nothing(load: Load) -> None:
    """What a time limit does at the door ends here: no page, no pass, no token of it."""
    model, collector, made = load(), Collector(), requests(3)
    engine = Engine(model, Off(), config=EngineConfig(max_batch=1))
    for request in made:
        engine.submit(request, collector)
    for request in made[1:]:
        engine.cancel(request.request_id)
    with engine:
        collector.wait(3)
    assert collector.reasons == {"0": FinishReason.LENGTH, "1": FinishReason.ABORT, "2": FinishReason.ABORT}
    assert engine.stats().num_prefill_tokens == len(made[0].prompt_ids)
    assert engine.stats().num_committed == 20
    assert model.ledger.num_free == model.ledger.num_pages


def test_idle_time_behind_a_cancelled_request_is_no_time_of_the_next_round(load: Load) -> None:
    clock, made = Clock(), requests(2)
    stepper = make_stepper(load(), Off(), None, SchedulerConfig(), "target", clock=clock)
    first, second = (Sequence(number, request, 64, arrived_s=clock()) for number, request in enumerate(made))
    stepper.scheduler.add(first)
    stepper.step()
    stepper.remove(first)
    clock.now += 1000.0
    stepper.scheduler.add(second)
    _, record = stepper.step()
    assert record.ended_s - record.began_s < 1.0
