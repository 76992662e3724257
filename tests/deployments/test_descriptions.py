"""What targets said of themselves, in a store of the same calls as the cluster's."""

from __future__ import annotations

from deployments.config import TargetConfig
from deployments.descriptions import forget_all, key_of, recall, remember
from tests.deployments.conftest import Store

SAID = {"max_model_len": 64, "eos_token_ids": [1], "ready": True}
CONFIG = TargetConfig(name="a", path="somewhere")
KEYS = {"a": key_of(CONFIG)}


def test_what_a_target_said_stays_known_until_the_application_goes(store: Store) -> None:
    assert recall(KEYS, "a") is None
    remember(key_of(CONFIG), SAID)
    assert recall(KEYS, "a") == SAID
    remember(key_of(CONFIG), SAID | {"max_model_len": 32})
    assert recall(KEYS, "a") == SAID | {"max_model_len": 32}
    forget_all()
    assert recall(KEYS, "a") is None
    assert not store


def test_what_it_said_under_another_config_does_not_count(store: Store) -> None:
    remember(key_of(CONFIG.model_copy(update={"max_model_len": 96})), SAID)
    assert store
    assert recall(KEYS, "a") is None


def test_of_a_model_without_a_key_and_without_a_cluster_nothing_is_known_and_nothing_fails() -> None:
    remember(key_of(CONFIG), SAID)
    assert recall(KEYS, "a") is None
    assert recall({}, "a") is None
    forget_all()
