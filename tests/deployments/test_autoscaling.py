"""How many replicas there shall be: over many loads, through Serve's own delays, and of what a draft replica tells."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from pydantic import ValidationError
from ray import cloudpickle
from ray.serve.autoscaling_policy import _apply_autoscaling_config
from ray.serve.config import AutoscalingConfig

from deployments.app import pool_options, target_options
from deployments.autoscaling import BUSY, BusyPolicy, busy_share, wanted
from deployments.config import AppConfig, PoolConfig
from deployments.config_replica import Autoscaling
from deployments.placement import cpus_needed, num_replicas

HIGH, LOW = 0.8, 0.4


def spread(total: float, num: int, rng: random.Random) -> list[float]:
    cuts = sorted(rng.random() for _ in range(num - 1))
    return [total * (end - begin) for begin, end in zip([0.0, *cuts], [*cuts, 1.0], strict=True)]


@pytest.mark.parametrize("seed", range(200))
def test_a_decision_leaves_each_replica_a_load_that_it_can_bear_and_changes_nothing_in_between(seed: int) -> None:
    rng = random.Random(seed)
    before, total = rng.randint(1, 12), rng.choice([0.0, rng.uniform(0, 3), rng.uniform(0, 20)])
    after = wanted(spread(total, before, rng), before, HIGH, LOW)
    assert after >= 1
    assert total / after <= HIGH + 1e-9
    if after < before:
        assert total / after <= LOW + 1e-9, "those that are left are calm"
        assert after == 1 or total / (after - 1) > LOW, "and none stays in vain"
    if after > before:
        assert total / before > HIGH, "none comes without need"
    if LOW * (before - 1) < total <= HIGH * before:
        assert after == before


@pytest.mark.parametrize("seed", range(50))
def test_a_load_that_wavers_makes_no_replica_come_and_go(seed: int) -> None:
    rng = random.Random(seed)
    total, nums = rng.uniform(0, 12), [rng.randint(1, 12)]
    for _ in range(40):
        shaken = total * rng.uniform(0.75, 1.25)
        nums.append(wanted(spread(shaken, nums[-1], rng), nums[-1], HIGH, LOW))
    came, went = (any(sign * (b - a) > 0 for a, b in pairwise(nums[1:])) for sign in (1, -1))
    assert not (came and went), nums


@dataclass
class Context:
    """What the policy reads of Serve's, in the shape that Serve has it."""

    config: AutoscalingConfig
    current_num_replicas: int = 1
    target_num_replicas: int = 1
    loads: tuple[float, ...] = ()
    queued: float = 0.0
    policy_state: dict[str, Any] = field(default_factory=dict)

    @property
    def aggregated_metrics(self) -> dict[str, dict[str, float]]:
        return {BUSY: {str(number): load for number, load in enumerate(self.loads)}}

    @property
    def total_queued_requests(self) -> float:
        return self.queued

    @property
    def total_num_requests(self) -> float:
        return sum(self.loads) + self.queued


def config_of(**changes: Any) -> AppConfig:
    scaling = {"max_replicas": 4, "up_after_s": 5, "down_after_s": 20}
    target = {
        "name": "large",
        "path": "x",
        "max_batch": 10,
        "autoscaling": scaling,
        "speculation": {"policy": "goodput"},
    }
    pool = {"path": "y", "autoscaling": scaling}
    return AppConfig.model_validate({"targets": [target], "pool": pool} | changes)


def serve_config(config: AppConfig) -> AutoscalingConfig:
    made: AutoscalingConfig = target_options(config.targets[0])["autoscaling_config"]
    return made


def test_through_serves_delays_a_flood_adds_replicas_and_calm_takes_them_away_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The policy as Serve has it: pickled, made from its arguments, and wrapped in Serve's delays."""
    config = serve_config(config_of())
    policy = cloudpickle.loads(cloudpickle.dumps(config.policy.get_policy()))(**config.policy.policy_kwargs)
    decide: Any = _apply_autoscaling_config(policy)
    context, now, history = Context(config), 1000.0, list[tuple[float, int]]()
    monkeypatch.setattr("ray.serve.autoscaling_policy.time.time", lambda: now)
    for _ in range(100):
        total = 2.6 if now < 1040 else 0.2
        num = context.target_num_replicas
        context.loads, context.current_num_replicas = (total / num,) * num, num
        context.target_num_replicas, context.policy_state = decide(context)
        if context.target_num_replicas != num:
            history.append((now - 1000.0, context.target_num_replicas))
        now += 1.0
    assert history == [(5.0, 4), (60.0, 1)]


def test_requests_that_wait_at_handles_count() -> None:
    context = Context(AutoscalingConfig(), loads=(0.5,), queued=20.0)
    assert BusyPolicy(HIGH, LOW, places=10)(context)[0] == 4
    assert BusyPolicy(HIGH, LOW)(context)[0] == 1


def test_none_is_sent_away_while_one_has_not_told_its_load() -> None:
    context = Context(AutoscalingConfig(), 2, 3, loads=(0.1, 0.1))
    for places in (0, 10):
        assert BusyPolicy(HIGH, LOW, places)(context)[0] == 3
    context.loads = (0.1, 0.1, 0.1)
    assert BusyPolicy(HIGH, LOW)(context)[0] == 1


@pytest.mark.parametrize("seed", range(30))
def test_the_busy_share_is_that_of_a_clock_which_is_looked_at_often(seed: int) -> None:
    rng, at, passes = random.Random(seed), 0.0, list[tuple[float, float]]()
    for _ in range(40):
        took_s = rng.uniform(0, 0.3)
        at += took_s + rng.uniform(0, 0.2)
        passes.append((at, took_s))
    now, window_s = at + rng.uniform(0, 0.5), rng.uniform(0.5, 3)
    moments = [now - window_s * (tick + 0.5) / 20_000 for tick in range(20_000)]
    inside = sum(any(end - took_s <= moment < end for end, took_s in passes) for moment in moments)
    assert busy_share(passes, now, window_s) == pytest.approx(inside / len(moments), abs=0.01)


def test_a_draft_replica_that_did_nothing_is_not_busy() -> None:
    assert busy_share([], 5.0, 2.0) == busy_share([(1.0, 0.9)], 5.0, 2.0) == 0.0


def test_serve_is_given_bounds_and_delays_and_the_cluster_is_made_for_the_most() -> None:
    config = config_of()
    made = serve_config(config)
    assert (made.min_replicas, made.max_replicas, made.upscale_delay_s, made.downscale_delay_s) == (1, 4, 5, 20)
    assert "num_replicas" not in target_options(config.targets[0])
    assert pool_options(config)["autoscaling_config"].policy.policy_kwargs["places"] == 0
    assert cpus_needed(config) == 4 + 4 + 1
    assert num_replicas(config) == 3, "that there are at the start"


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"max_replicas": 2, "min_replicas": 3}, "min_replicas 3 exceeds max_replicas 2"),
        ({"max_replicas": 2, "busy": 0.5, "calm": 0.5}, "is not below busy"),
    ],
)
def test_bounds_that_make_no_sense_are_refused(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Autoscaling.model_validate(keys)


@pytest.mark.parametrize(
    ("keys", "says"),
    [({"num_replicas": 2}, "num_replicas 2 and autoscaling both say how many"), ({"cores": [0]}, "pin all 3 replicas")],
)
def test_what_does_not_go_with_autoscaling_is_refused(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        PoolConfig.model_validate({"path": "y", "autoscaling": {"max_replicas": 3}} | keys)


def test_a_colocated_pool_has_no_replicas_to_scale() -> None:
    with pytest.raises(ValidationError, match=r"pool\.autoscaling has no effect"):
        config_of(placement="colocated")
