"""Target replicas that are killed or stopped in the middle of answers, on a real local Ray cluster."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx
import pytest
import ray
from ray import serve
from ray.serve._private.common import DeploymentID
from ray.serve.context import _get_global_client

from deployments.app import APP_NAME, target_deployment
from protocol.request import SamplingParams
from targets.engine import Engine
from tests.deployments.chaos_kills import INGRESS, replicas_of
from tests.deployments.harness import wait_until
from tests.deployments.served import GREEDY, PROMPT, SAMPLED, Served, expected, fields_of, text_of
from tests.fixtures import CONFIG

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("nothing_leaks")]

SAMPLINGS = pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
NUM_TOKENS = 440
PATHS = {"large": "two replicas", "small": "one replica, which Serve replaces"}


@pytest.fixture(scope="module")
def config_text() -> Iterator[str]:
    """The tests may scale what is deployed."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(serve, "RunTarget", partial(serve.RunTarget, external_scaler_enabled=True))
        yield CONFIG.replace("path: large\n", "path: large\n    num_replicas: 2\n")


@dataclass
class Answer:
    """A stream as its client has it."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    reason: str | None = None
    num_tokens: int = 0
    begun: threading.Event = field(default_factory=threading.Event)

    def read(self, served: Served, model: str, sampling: SamplingParams, **settings: Any) -> Answer:
        fields = fields_of(sampling, NUM_TOKENS) | {"stream_options": {"include_usage": True}} | settings
        for chunk in served.complete(model, stream=True, **fields):
            for choice in chunk.choices:
                self.token_ids += choice.model_dump()["token_ids"]
                self.text += choice.text
                self.reason = choice.finish_reason or self.reason
            self.num_tokens = chunk.usage.completion_tokens if chunk.usage else self.num_tokens
            self.begun.set()
        return self


@contextmanager
def answering(
    served: Served, model: str, sampling: SamplingParams, count: int, **settings: Any
) -> Iterator[list[Future[Answer]]]:
    """Streams of which each has begun."""
    answers = [Answer() for _ in range(count)]
    with ThreadPoolExecutor(count) as threads:
        ends = [threads.submit(answer.read, served, model, sampling, **settings) for answer in answers]
        for answer in answers:
            assert answer.begun.wait(60)
        yield ends


def kill_a_busy_replica(served: Served, model: str) -> None:
    """It has a request, and so has lost it when this returns."""
    described, counts = served.targets(model, "describe"), served.targets(model, "stats")
    busy = [told["incarnation"] for told, count in zip(described, counts, strict=True) if count["num_running"]]
    served.kill(target_deployment(model), busy[0])


def wait_until_all_are_back(served: Served) -> None:
    wanted = {target.name: target.num_replicas for target in served.config.targets}

    def back() -> bool:
        return served.health() == 200 and all(
            len(served.targets(name, "describe")) == count for name, count in wanted.items()
        )

    wait_until(back)


@SAMPLINGS
@pytest.mark.parametrize("model", PATHS)
def test_streams_go_on_with_the_same_text_when_their_replica_is_killed(
    served: Served, oracles: dict[str, Engine], model: str, sampling: SamplingParams
) -> None:
    oracle = expected(oracles[model], NUM_TOKENS, sampling)
    with answering(served, model, sampling, 4) as ends:
        kill_a_busy_replica(served, model)
        for end in ends:
            answer = end.result(timeout=120)
            assert tuple(answer.token_ids) == oracle
            assert answer.text == text_of(oracle)
            assert (answer.reason, answer.num_tokens) == ("length", NUM_TOKENS)
    wait_until_all_are_back(served)


@pytest.mark.parametrize("model", PATHS)
def test_a_stop_string_ends_the_stream_where_it_would_have(
    served: Served, oracles: dict[str, Engine], model: str
) -> None:
    oracle = text_of(expected(oracles[model], NUM_TOKENS, SAMPLED))
    at = next(at for at in range(len(oracle) - 3, 0, -1) if oracle.find(oracle[at : at + 3]) == at)
    with answering(served, model, SAMPLED, 3, stop=[oracle[at : at + 3]]) as ends:
        kill_a_busy_replica(served, model)
        answers = [end.result(timeout=120) for end in ends]
    assert {(answer.text, answer.reason) for answer in answers} == {(oracle[:at], "stop")}
    assert len({answer.num_tokens for answer in answers}) == 1
    wait_until_all_are_back(served)


@pytest.mark.parametrize("model", PATHS)
def test_whole_answers_come_although_their_replica_is_killed(
    served: Served, oracles: dict[str, Engine], model: str
) -> None:
    oracle = expected(oracles[model], NUM_TOKENS, SAMPLED)
    with ThreadPoolExecutor(3) as threads:
        answers = [threads.submit(served.tokens, model, SAMPLED, NUM_TOKENS) for _ in range(3)]
        wait_until(lambda: any(told["num_running"] for told in served.targets(model, "stats")))
        kill_a_busy_replica(served, model)
        assert [answer.result(timeout=120) for answer in answers] == [oracle] * 3
    wait_until_all_are_back(served)


def test_an_ingress_that_starts_while_a_lone_target_is_away_waits_for_it(
    served: Served, oracles: dict[str, Engine]
) -> None:
    """It is back first, as it has less to load, and has never heard of the model itself."""
    oracle = expected(oracles["small"], NUM_TOKENS, SAMPLED)
    served.kill_target("small")
    for actor in replicas_of(INGRESS):
        ray.kill(ray.get_actor(actor, namespace="serve"), no_restart=True)
    wait_until(lambda: served.health() != 0)
    assert served.tokens("small", SAMPLED, NUM_TOKENS) == oracle
    wait_until_all_are_back(served)


def test_a_time_limit_while_the_replica_is_away_is_an_error_event(served: Served) -> None:
    """A replica takes longer to start than is left."""
    body = {"model": "small", "prompt": PROMPT, "max_tokens": NUM_TOKENS, "ignore_eos": True, "stream": True}
    chunks: list[Any] = []
    headers = {"x-request-timeout-seconds": "2"}
    with httpx.stream("POST", f"{served.url}/v1/completions", json=body, headers=headers, timeout=60) as response:
        lines = (line.removeprefix("data: ") for line in response.iter_lines() if line)
        chunks.append(json.loads(next(lines)))
        served.kill_target("small")
        *rest, done = lines
    assert done == "[DONE]"
    assert json.loads(rest[-1])["error"]["code"] == "request_timeout"
    wait_until_all_are_back(served)


@SAMPLINGS
def test_a_replica_that_is_scaled_away_loses_no_stream(
    served: Served, oracles: dict[str, Engine], sampling: SamplingParams
) -> None:
    oracle = expected(oracles["large"], NUM_TOKENS, sampling)
    with answering(served, "large", sampling, 6) as ends:
        scale("large", 1)
        wait_until(lambda: len(served.targets("large", "describe")) == 1)
        assert [tuple(end.result(timeout=120).token_ids) for end in ends] == [oracle] * 6
    scale("large", 2)
    wait_until_all_are_back(served)


def scale(model: str, num_replicas: int) -> None:
    controller: Any = _get_global_client()._controller
    deployment = DeploymentID(target_deployment(model), APP_NAME)
    ray.get(controller.update_deployment_replicas.remote(deployment, num_replicas))
