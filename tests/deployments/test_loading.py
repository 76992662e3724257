"""Stages of replicas that start, in a store of the same three calls."""

from __future__ import annotations

import time

import pytest

from deployments.loading import STALE_S, shown, stages


def test_each_replica_tells_its_phase_and_share_until_it_has_started(store: dict[bytes, bytes]) -> None:
    with shown("target-b", "1") as one, shown("target-a", "2") as other:
        assert [str(stage) for stage in stages()] == ["target-a: weights", "target-b: weights"]
        one.weights(12, 30)
        other.phase("costs of passes")
        assert [str(stage) for stage in stages()] == ["target-a: costs of passes", "target-b: weights, 12 of 30"]
    assert stages() == []


def test_one_that_fails_is_gone_too(store: dict[bytes, bytes]) -> None:
    with pytest.raises(RuntimeError), shown("target-a", "1"):
        raise RuntimeError
    assert not store


def test_one_that_was_lost_long_ago_does_not_show(store: dict[bytes, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    with shown("target-a", "1"):
        later = time.time() + STALE_S + 1
        monkeypatch.setattr(time, "time", lambda: later)
        assert stages() == []


def test_without_a_cluster_nothing_is_told_and_nothing_fails() -> None:
    with shown("target-a", "1") as loading:
        loading.weights(1, 2)
    assert stages() == []
