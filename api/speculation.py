"""The speculation setting of one request, over HTTP and gRPC: auto, off, or a depth and a length.

It changes the speed of an answer, never its text.
"""

from __future__ import annotations

import reprlib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from api.backend import ModelCard
from protocol.errors import InvalidRequest
from protocol.plan import Speculation

OFF = Speculation(depth=0, length=0)
MAX_LENGTH = 64
INT32_MAX = (1 << 31) - 1


class DepthAndLength(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    depth: int = Field(ge=1, le=INT32_MAX)
    length: int = Field(ge=1, le=MAX_LENGTH)


SpeculationField = Literal["auto", "off", False] | DepthAndLength | None


def parse_speculation(value: Any) -> Speculation | None:
    """The value of the field; None means auto: the target's policy decides. Raises InvalidRequest."""
    if value is None or value == "auto":
        return None
    if value is False or value == "off":
        return OFF
    try:
        pair = DepthAndLength.model_validate(value)
    except ValidationError as error:
        raise InvalidRequest(
            f"speculation {reprlib.repr(value)} is not supported{_complaint(error)}; "
            f'send "auto", "off", or a depth of 1 or more with a length of 1 to {MAX_LENGTH}',
            "speculation",
        ) from None
    return Speculation(pair.depth, pair.length)


def _complaint(error: ValidationError) -> str:
    complaints = [f"{str(item['loc'][0])[:40]}: {item['msg']}" for item in error.errors()[:3] if item["loc"]]
    return f" ({', '.join(complaints)})" if complaints else ""


def check_speculation(card: ModelCard, speculation: Speculation | None) -> None:
    """Raises InvalidRequest for a length above the target's limit, or for an unknown depth if the exits are known.

    The length is limited because all rows of a round wait for the longest draft.
    """
    if speculation is None or not speculation.length:
        return
    if card.max_draft_length is not None and speculation.length > card.max_draft_length:
        raise InvalidRequest(
            f"speculation length {speculation.length} exceeds {card.max_draft_length}, the limit of {card.id}; "
            "send less",
            "speculation",
        )
    if not card.exits or speculation.depth in card.exits:
        return
    raise InvalidRequest(
        f"speculation depth {speculation.depth} is not an exit of the drafter of {card.id}; "
        f"send one of {', '.join(map(str, card.exits))}",
        "speculation",
    )
