"""From the speculation section of a config to a policy."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from deployments.config import AppConfig
from deployments.config_speculation import (
    FixedSpeculation,
    GoodputSpeculation,
    Speculation,
    TableSpeculation,
)
from deployments.policies import adaptive, depth_rule, drafts_ahead, longest_draft, needed_exits, policy
from protocol.plan import DepthRule, Mode
from router.policy import Ema, Fixed, Goodput, Off, Table
from tests.router.curves import curves


def speculation(**values: Any) -> Any:
    """As a config with these keys has it."""
    config = {"targets": [{"name": "a", "path": "x", "speculation": values}], "pool": {"path": "x"}}
    return AppConfig.model_validate(config).targets[0].speculation


FIXED, TABLE = {"policy": "fixed", "depth": 2}, {"policy": "table", "depth": 2, "table": {1: 4}}


@pytest.mark.parametrize("own", [{}, FIXED, TABLE])
@pytest.mark.parametrize(("value", "told"), [("on", True), (True, True), ("off", False), (False, False)])
def test_drafts_come_ahead_where_a_config_says_so_and_else_they_do_not(own: Any, value: object, told: bool) -> None:
    for apart, translates in itertools.product((False, True), repeat=2):
        assert drafts_ahead(speculation(**own, ahead=value), apart=apart, translates=translates) is told


def test_left_out_the_router_may_choose_where_a_pool_apart_reads_the_targets_own_tokens() -> None:
    chosen = {
        (apart, translates)
        for apart, translates in itertools.product((False, True), repeat=2)
        if drafts_ahead(speculation(), apart=apart, translates=translates)
    }
    assert chosen == {(True, False)}
    for own in (FIXED, TABLE, {"policy": "ema"}):
        assert not drafts_ahead(speculation(**own), apart=True, translates=False)
    assert not drafts_ahead(None, apart=True, translates=False)


@pytest.mark.parametrize("policy_name", ["fixed", "table"])
def test_depths_become_rules(policy_name: str) -> None:
    def rule(**values: Any) -> DepthRule:
        own = {"table": {1: 4}} if policy_name == "table" else {}
        section = speculation(policy=policy_name, **values, **own)
        assert policy(section).opening() == depth_rule(section)
        assert needed_exits(section) == depth_rule(section).exits
        return depth_rule(section)

    assert rule(depth=4) == DepthRule((4,))
    assert rule(depth="cascade") == DepthRule((2, 4, 6), (0.5, 0.5))
    assert rule(depth="cascade", exits=[1, 3], thresholds=[0.9]) == DepthRule((1, 3), (0.9,))


def test_sections_become_policies() -> None:
    assert policy(None) == Off()
    assert policy(speculation(policy="fixed", depth=4)) == Fixed(DepthRule((4,)), 4)
    assert policy(speculation(policy="table", depth=2, table={1: 6, 8: 0})) == Table(DepthRule((2,)), ((1, 6), (8, 0)))
    ahead = speculation(policy="table", depth=2, table={1: 6}, ahead="on")
    assert policy(ahead) == Table(DepthRule((2,)), ((1, 6),), Mode.AHEAD)
    assert policy(speculation()) == policy(speculation(policy="goodput")) == Off()  # until there is a drafter


def test_adaptive_policies_choose_from_every_exit_or_from_those_named() -> None:
    hand = curves()
    for name, kind in (("goodput", Goodput), ("ema", Ema)):
        every, some = speculation(policy=name), speculation(policy=name, exits=[2, 6], length=5)
        assert (needed_exits(every), needed_exits(some)) == ((), (2, 6))
        made = [adaptive(section, hand, (2, 4, 6), max_rows=5) for section in (every, some)]
        assert all(isinstance(one, kind) for one in made)
        assert [(one.costs.exits, one.costs.length) for one in made] == [((2, 4, 6), 12), ((2, 6), 5)]


@pytest.mark.parametrize(
    ("speculation", "longest"),
    [
        (None, None),
        (FixedSpeculation(policy="fixed", depth=2, length=5), 5),
        (TableSpeculation(policy="table", depth=2, table={1: 6, 4: 3}), 6),
        (GoodputSpeculation(length=9), 9),
        (GoodputSpeculation(length=9, request_length=2), 2),
        (FixedSpeculation(policy="fixed", depth=2, length=5, request_length=64), 64),
    ],
)
def test_the_longest_draft_of_a_request_is_that_of_the_policy_unless_the_config_sets_it(
    speculation: Speculation | None, longest: int | None
) -> None:
    assert longest_draft(speculation) == longest
