"""Ways of being drafted for, as served: the config of each, and what stands beside what."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest

from bench.client import ServedAnswer
from bench.serving.ways import WAYS, config_of, rows, table
from deployments.config import AppConfig

PLACE: dict[str, Any] = {"cpu": "2 x CPU", "threads": 1, "torch": "2", "commit": "abc", "command": "bench"}


def config(placement: str, *ways: str) -> AppConfig:
    places = {"target": "t", "drafter": "d", "weights": "dense", "kv_mb": 8, "deadline_ms": 100.0}
    return config_of(Namespace(placement=placement, ways=list(ways), **places))


def answer(num_tokens: int, first_s: float, end_s: float, text: str = "a") -> ServedAnswer:
    return ServedAnswer("way", 0.0, first_s, end_s, num_tokens, text)


def test_with_a_pool_apart_every_target_has_one_core_and_the_pool_the_other() -> None:
    app = config("separate", *WAYS)
    assert [target.name for target in app.targets] == list(WAYS)
    assert {(target.cores, target.threads) for target in app.targets} == {((0,), 1)}
    assert app.pool is not None
    assert app.pool.cores == (1,)
    plain, turn, ahead = (target.speculation for target in app.targets)
    assert plain is None
    assert turn is not None
    assert turn.ahead is False
    assert ahead is not None
    assert ahead.ahead is None, "as a config has it that does not say"


def test_colocated_every_target_has_both_cores() -> None:
    app = config("colocated", "off", "turn")
    assert {(target.cores, target.threads) for target in app.targets} == {(None, 2)}


def test_rates_count_what_follows_the_first_token_prompt_by_prompt() -> None:
    off = [answer(11, 1.0, 2.0), answer(11, 1.0, 3.0)]
    turn = [answer(11, 0.5, 1.0), answer(11, 1.0, 1.5, text="b")]
    counts = {"off": {"num_proposed": 0, "num_accepted": 0}, "turn": {"num_proposed": 9, "num_accepted": 6}}
    found = {(row.way, row.category): row for row in rows({"off": off, "turn": turn}, ["math", "qa"], counts)}
    assert found["off", "math"].tokens_per_second == pytest.approx(10)
    assert found["turn", "math"].over_off.median == pytest.approx(2)
    assert found["turn", "qa"].over_off.median == pytest.approx(4)
    assert found["turn", ""].over_off.median == pytest.approx(3)
    assert (found["turn", "math"].same_text, found["turn", "qa"].same_text, found["turn", ""].same_text) == (1, 0, 0.5)
    assert found["turn", "math"].ttft_ms == pytest.approx(500)
    lines = table(list(found.values()), PLACE).splitlines()
    assert lines[-3] == "| turn | all | 20.0 | 3.00 (2.00-4.00) | 750 | 6 of 9 | 50% |"
