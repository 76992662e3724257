"""Pressure on one draft replica, its pure parts: which tokens count, who asks what, and what stands beside what."""

from __future__ import annotations

import itertools
import time

import pytest

from bench.client import ServedAnswer
from bench.policies import POLICIES
from bench.router.loads import LoadCell, against, best_constant, met, table
from bench.router.served import config_of, names, numbers, parse, tokens_within
from bench.stats import Ratio
from protocol.errors import ConfigError

PLACE: dict[str, object] = {"cpu": "2 x CPU", "threads": 1, "torch": "2", "commit": "abc", "command": "bench --out x"}
OFF = LoadCell("off", 2, [(10.0, 20.0), (20.0, 40.0)])
SHORT = LoadCell("fixed 2/2", 2, [(15.0, 10.0), (30.0, 20.0)])
LONG = LoadCell("fixed 2/4", 2, [(20.0, 20.0), (40.0, 40.0)], {"drafted": 200, "accepted": 50})
GOODPUT = LoadCell("goodput", 2, [(12.0, 24.0), (24.0, 48.0)], plays={"off": 0.75, "2/3": 0.25})
CELLS = [OFF, SHORT, LONG, GOODPUT]


@pytest.mark.parametrize(
    ("sent_s", "end_s", "counted"), [(0, 4, 0), (10, 14, 8), (8, 12, 4), (18, 22, 4), (5, 25, 4), (20, 24, 0)]
)
def test_an_answer_counts_for_the_part_of_it_that_lies_within(sent_s: float, end_s: float, counted: float) -> None:
    assert tokens_within([ServedAnswer("small-0", sent_s, sent_s, end_s, 8, "")], 10.0, 20.0) == pytest.approx(counted)


def test_targets_begin_elsewhere_among_the_prompts_and_stop_when_time_is_over() -> None:
    until_s = time.perf_counter() + 60
    firsts = [next(numbers("abcd", target, 8, until_s)) for target in range(4)]
    assert firsts == [("a", 0), ("b", 2), ("c", 4), ("d", 6)]
    assert [number for _, number in itertools.islice(numbers("abcd", 1, 4, until_s), 5)] == [1, 2, 3, 0, 1]
    assert list(numbers("abcd", 0, 8, 0.0)) == []


def test_a_policy_is_held_against_off_the_best_constant_and_each_targets_own_off() -> None:
    assert best_constant(CELLS, 2) is LONG
    found = against(GOODPUT, CELLS)
    assert found.off == Ratio(1.2, 1.2, 1.2, 2)
    assert found.constant == Ratio(0.9, 0.9, 0.9, 2)
    assert found.worst_target == 1.2
    assert against(SHORT, CELLS).worst_target == 0.5
    assert against(LoadCell("goodput", 4, [(1.0, 1.0)]), CELLS).off is None


def test_a_learning_policy_has_to_reach_the_best_constant_and_off() -> None:
    assert not met(against(GOODPUT, CELLS))
    assert met(against(GOODPUT, [OFF, SHORT, GOODPUT]))
    slow = LoadCell("goodput", 2, [(9.0, 19.0), (18.0, 38.0)])
    assert not met(against(slow, [OFF, slow]))


def test_the_table_shows_every_policy_at_its_load() -> None:
    rows = table(CELLS, "A note.", PLACE).splitlines()
    assert rows[2] == ("| 2 | off | 15, 30 | 45 | 1.000 (1.000-1.000) | 0.750 (0.750-0.750) | 1.000 | - | - |")
    assert "| 200, 25% |" in rows[4]
    assert "| off 75%, 2/3 25% |" in rows[5]
    assert "A note." in rows


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_differ_in_nothing_but_speculation(policy: str) -> None:
    args = parse(["--load", "1,32"])
    config = config_of(policy, args)
    assert tuple(target.name for target in config.targets) == names(args)
    assert {(target.threads, target.max_batch, target.num_replicas) for target in config.targets} == {(1, 32, 1)}
    played = {target.speculation.policy if target.speculation else "off" for target in config.targets}
    assert played == {policy}
    assert config.pool is not None
    assert config.pool.num_replicas == 1


def test_apart_the_targets_have_one_core_and_the_pool_the_other() -> None:
    config = config_of("goodput", parse(["--load", "8", "--num-targets", "2", "--apart"]))
    assert config.pool is not None
    assert [target.cores for target in config.targets] == [(0,), (0,)]
    assert config.pool.cores == (1,)


def test_one_policy_alone_is_refused() -> None:
    from bench.router.served import run

    with pytest.raises(ConfigError, match="two or more"):
        run(parse(["--policies", "off"]))
