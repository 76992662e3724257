"""The speculation section of a target's config: the policy, and drafting ahead (mirror)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, field_validator

from deployments.config_section import Count, Section
from protocol.limits import FAN_OUT, MAX_FAN_OUT, MAX_LENGTH
from protocol.plan import Mode

Length = Annotated[int, Field(ge=1, le=MAX_LENGTH)]


def _ascending(exits: tuple[int, ...]) -> tuple[int, ...]:
    if list(exits) != sorted(set(exits)):
        raise ValueError(f"exits {list(exits)} must ascend")
    return exits


Exits = Annotated[tuple[Count, ...], Field(min_length=1), AfterValidator(_ascending)]


class Mirror(Section):
    """Drafting ahead: while a window is verified, the pool drafts the windows behind its likely outcomes.

    modes: how a round may get its proposals. fan_out: branches of a sequence at most.
    """

    fan_out: Annotated[int, Field(ge=1, le=MAX_FAN_OUT)] = FAN_OUT
    modes: Annotated[tuple[Mode, ...], Field(min_length=1)] = (Mode.SERIAL, Mode.AHEAD)

    @field_validator("modes")
    @classmethod
    def _once_each(cls, value: tuple[Mode, ...]) -> tuple[Mode, ...]:
        if twice := next((mode for mode in value if value.count(mode) > 1), None):
            raise ValueError(f"{twice} is named twice; name each mode once")
        return value


class Drafted(Section):
    """What speculation takes whatever its policy. mirror null or off: draft and verify in turn.

    request_length: the longest draft that a request may ask for itself; null: the policy's own longest.
    """

    deadline_ms: Annotated[float, Field(gt=0)] = 50.0
    request_length: Length | None = None
    mirror: Mirror | None = None

    @field_validator("mirror", mode="before")
    @classmethod
    def _on_or_off(cls, value: object) -> object:
        if value in (False, "off"):
            return None
        return {} if value is True or value == "on" else value


class FixedSpeculation(Drafted):
    """One depth, which is an exit of the drafter, and one length."""

    policy: Literal["fixed"]
    depth: Count
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
