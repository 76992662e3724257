"""Stages of replicas that start, in a store of the same three calls."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from api.backend import Starting
from deployments.loading import SPACE, STALE_S, Stage, awaited, shown, stages, start_took_s
from tests.deployments.conftest import Store
from tests.deployments.harness import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Seconds since 1970, as replicas and ingress have them."""
    clock = Clock()
    monkeypatch.setattr(time, "time", clock)
    return clock


def test_each_replica_tells_its_phase_and_share_until_it_has_started(store: Store) -> None:
    with shown("target-b", "1") as one, shown("target-a", "2") as other:
        assert [str(stage) for stage in stages()] == ["target-a: weights", "target-b: weights"]
        one.weights(12, 30)
        other.phase("costs of passes")
        assert [str(stage) for stage in stages()] == ["target-a: costs of passes", "target-b: weights, 12 of 30"]
    assert stages() == []


def test_one_that_fails_is_gone_too(store: Store) -> None:
    with pytest.raises(RuntimeError), shown("target-a", "1"):
        raise RuntimeError
    assert not store


def test_one_that_was_lost_long_ago_does_not_show(store: Store, clock: Clock) -> None:
    with shown("target-a", "1"):
        clock.now += STALE_S + 1
        assert stages() == []
        assert not store, "what it left is gone"


def test_what_is_no_stage_hides_none(store: Store) -> None:
    store[SPACE, b"0"], store[SPACE, b"1"] = b"[", b'{"shape": 1}'
    with shown("target-a", "2"):
        assert [str(stage) for stage in stages()] == ["target-a: weights"]


def test_without_a_cluster_nothing_is_told_and_nothing_fails() -> None:
    with shown("target-a", "1") as loading:
        loading.weights(1, 2)
    assert stages() == []
    assert awaited("target-a", 0.0) == Starting()


@pytest.mark.parametrize(
    ("stage", "before_s", "left_s"),
    [
        (Stage("a", "weights", 0, 0), None, None),
        (Stage("a", "weights", 0, 30), None, None),
        (Stage("a", "weights", 10, 30), None, 20.0),
        (Stage("a", "weights", 30, 30), None, 0.0),
        (Stage("a", "weights", 10, 30), 45.0, 35.0),
        (Stage("a", "costs of passes"), None, None),
        (Stage("a", "costs of passes"), 12.5, 2.5),
        (Stage("a", "costs of passes"), 9.0, None),
    ],
)
def test_what_is_left_is_told_by_the_last_start_and_else_by_the_share_of_the_weights(
    stage: Stage, before_s: float | None, left_s: float | None
) -> None:
    """Ten seconds after its beginning."""
    assert replace(stage, began=100.0).left_s(before_s, 110.0) == left_s


def test_a_start_is_told_by_its_weights_and_the_next_one_by_it(store: Store, clock: Clock) -> None:
    assert start_took_s("target-a") is None
    with shown("target-a", "1") as loading:
        clock.now = 4.0
        loading.weights(2, 10)
        assert awaited("target-a", 6.0) == Starting("weights, 2 of 10", 24.0)
        clock.now = 40.0
    assert (start_took_s("target-a"), awaited("target-a", 41.0)) == (40.0, Starting())
    with shown("target-a", "2"):
        assert awaited("target-a", 55.0) == Starting("weights", 25.0)
        assert awaited("target-b", 55.0) == Starting()


def test_of_several_replicas_the_first_to_be_there_counts(store: Store, clock: Clock) -> None:
    with shown("target-a", "1") as one, shown("target-a", "2") as other:
        clock.now = 10.0
        one.weights(1, 10)
        other.weights(5, 10)
        assert awaited("target-a", 10.0).left_s == 10.0


def test_a_start_that_failed_says_nothing_of_how_long_one_takes(store: Store) -> None:
    with pytest.raises(RuntimeError), shown("target-a", "1"):
        raise RuntimeError
    assert start_took_s("target-a") is None
