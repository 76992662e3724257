"""From the speculation section of a config to a policy."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.config import AppConfig
from deployments.config_speculation import FixedSpeculation, GoodputSpeculation, Mirror, Speculation
from deployments.policies import adaptive, longest_draft, needed_exits, policy
from protocol.plan import Mode
from router.policy import Ema, Fixed, Goodput, Off
from tests.router.curves import curves


def speculation(**values: Any) -> Any:
    """As a config with these keys has it."""
    config = {"targets": [{"name": "a", "path": "x", "speculation": values}], "pool": {"path": "x"}}
    return AppConfig.model_validate(config).targets[0].speculation


@pytest.mark.parametrize(
    ("value", "mirror"),
    [
        ("off", None),
        (False, None),
        (None, None),
        ("on", Mirror()),
        (True, Mirror()),
        ({}, Mirror(fan_out=2)),
        ({"fan_out": 4}, Mirror(fan_out=4)),
        ({"modes": ["ahead"]}, Mirror(modes=(Mode.AHEAD,))),
    ],
)
def test_drafting_ahead_is_off_unless_asked_for_whatever_the_policy(value: object, mirror: Mirror | None) -> None:
    for own in ({}, {"policy": "fixed", "depth": 2}):
        assert speculation(**own).mirror is None
        assert speculation(**own, mirror=value).mirror == mirror


def test_sections_become_policies() -> None:
    assert policy(None) == Off()
    fixed = speculation(policy="fixed", depth=2, mirror="on")
    assert policy(speculation(policy="fixed", depth=4)) == Fixed(4, 4)
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
