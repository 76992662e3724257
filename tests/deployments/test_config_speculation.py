"""From the speculation section of a config to a policy."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from deployments.config import AppConfig, TargetConfig
from deployments.config_speculation import (
    FixedSpeculation,
    GoodputSpeculation,
    Speculation,
)
from deployments.policies import adaptive, drafts_ahead, longest_draft, needed_exits, policy
from protocol.errors import ConfigError
from protocol.plan import Mode
from router.policy import Ema, Fixed, Goodput, Off
from tests.router.curves import curves


def speculation(**values: Any) -> Any:
    """As a config with these keys has it."""
    config = {"targets": [{"name": "a", "path": "x", "speculation": values}], "pool": {"path": "x"}}
    return AppConfig.model_validate(config).targets[0].speculation


def target(**values: Any) -> TargetConfig:
    return TargetConfig(name="large", path="x", speculation=speculation(**values))


FIXED = {"policy": "fixed", "depth": 2}


@pytest.mark.parametrize("own", [{}, FIXED])
@pytest.mark.parametrize(("value", "told"), [("on", True), (True, True), ("off", False), (False, False)])
def test_drafts_come_ahead_where_a_config_says_so_and_else_they_do_not(own: Any, value: object, told: bool) -> None:
    for apart in (False, True):
        assert drafts_ahead(target(**own, ahead=value), apart=apart, translates=False) is told


@pytest.mark.parametrize("own", [{}, FIXED])
def test_drafts_through_a_translation_never_come_ahead_and_a_config_that_wants_them_to_is_told_its_key(
    own: Any,
) -> None:
    assert not drafts_ahead(target(**own, ahead="off"), apart=True, translates=True)
    with pytest.raises(ConfigError, match=r"target large is to be .* another tokenizer, .*; leave ahead: on out"):
        drafts_ahead(target(**own, ahead="on"), apart=True, translates=True)


def test_left_out_the_router_may_choose_where_a_pool_apart_reads_the_targets_own_tokens() -> None:
    chosen = {
        (apart, translates)
        for apart, translates in itertools.product((False, True), repeat=2)
        if drafts_ahead(target(), apart=apart, translates=translates)
    }
    assert chosen == {(True, False)}
    for own in (FIXED, {"policy": "ema"}):
        assert not drafts_ahead(target(**own), apart=True, translates=False)
    assert not drafts_ahead(TargetConfig(name="large", path="x"), apart=True, translates=False)


def test_sections_become_policies() -> None:
    assert policy(None) == Off()
    assert policy(speculation(policy="fixed", depth=4)) == Fixed(4, 4)
    fixed = speculation(policy="fixed", depth=2, ahead="on")
    assert policy(fixed) == Fixed(2, 4, Mode.AHEAD)
    assert needed_exits(fixed) == (2,)
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
        (GoodputSpeculation(length=9), 9),
        (GoodputSpeculation(length=9, request_length=2), 2),
        (FixedSpeculation(policy="fixed", depth=2, length=5, request_length=64), 64),
    ],
)
def test_the_longest_draft_of_a_request_is_that_of_the_policy_unless_the_config_sets_it(
    speculation: Speculation | None, longest: int | None
) -> None:
    assert longest_draft(speculation) == longest
