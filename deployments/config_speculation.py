"""The speculation section of a target's config: the policy, and whether drafts come ahead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, field_validator

from deployments.config_section import Count, Section
from protocol.limits import MAX_LENGTH

Length = Annotated[int, Field(ge=1, le=MAX_LENGTH)]


def _ascending(exits: tuple[int, ...]) -> tuple[int, ...]:
    if list(exits) != sorted(set(exits)):
        raise ValueError(f"exits {list(exits)} must ascend")
    return exits


Exits = Annotated[tuple[Count, ...], Field(min_length=1), AfterValidator(_ascending)]


class Drafted(Section):
    """What speculation takes whatever its policy.

    request_length: the longest draft that a request may ask for itself; null: the policy's own longest. ahead: whether
    the pool drafts while the target verifies; null: as `drafts_ahead` in deployments/policies.py has it.
    """

    deadline_ms: Annotated[float, Field(gt=0)] = 50.0
    request_length: Length | None = None
    ahead: bool | None = None


class FixedSpeculation(Drafted):
    """One depth, which is an exit of the drafter, and one length."""

    policy: Literal["fixed"]
    depth: Annotated[Count, Field(description="an exit of the drafter, counted in layers")]
    length: Length = 4


class AdaptiveSpeculation(Drafted):
    """Exit and length as measured costs and learned acceptance have it, off included.

    exits: the depths to choose from (null: all of the drafter). length: of the longest draft.
    """

    exits: Exits | None = None
    length: Length = 12


class GoodputSpeculation(AdaptiveSpeculation):
    """What is believed of acceptance and costs, explored where it may pay."""

    policy: Literal["goodput"] = "goodput"


class EmaSpeculation(AdaptiveSpeculation):
    """A moving average of acceptance, at the profile's costs."""

    policy: Literal["ema"]

    @field_validator("ahead")
    @classmethod
    def _in_turn(cls, value: bool | None) -> bool | None:
        if value:
            raise ValueError("policy: ema drafts in turn only; leave ahead out, or take policy: goodput")
        return value


def _policy_of(section: object) -> str | None:
    if isinstance(section, Mapping):
        return str(section.get("policy", "goodput"))
    return getattr(section, "policy", None)


Speculation = Annotated[
    Annotated[GoodputSpeculation, Tag("goodput")]
    | Annotated[EmaSpeculation, Tag("ema")]
    | Annotated[FixedSpeculation, Tag("fixed")],
    Discriminator(_policy_of),
]
