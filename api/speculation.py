"""What a request may ask of speculation for itself, the same over HTTP and gRPC: auto, off, or a depth and a length.

It changes how fast an answer comes, never its text.
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


Spelled = Literal["auto", "off", False] | DepthAndLength | None


def asked(spelled: Any) -> Speculation | None:
    """None, which is auto too, leaves it to the target's policy. Raises InvalidRequest."""
    if spelled is None or spelled == "auto":
        return None
    if spelled is False or spelled == "off":
        return OFF
    try:
        pair = DepthAndLength.model_validate(spelled)
    except ValidationError as error:
        raise InvalidRequest(
            f"speculation {reprlib.repr(spelled)} is not supported{_complaint(error)}; "
            f'send "auto", "off", or a depth of 1 or more with a length of 1 to {MAX_LENGTH}',
            "speculation",
        ) from None
    return Speculation(pair.depth, pair.length)


def _complaint(error: ValidationError) -> str:
    complaints = [f"{str(each['loc'][0])[:40]}: {each['msg']}" for each in error.errors()[:3] if each["loc"]]
    return f" ({', '.join(complaints)})" if complaints else ""


def check_speculation(card: ModelCard, speculation: Speculation | None) -> None:
    """Raises InvalidRequest for a length beyond the target's limit, since all rows of a round wait for the longest
    draft, and for a depth that the drafter has not, where its exits are known.
    """
    if speculation is None or not speculation.length:
        return
    if card.longest_draft is not None and speculation.length > card.longest_draft:
        raise InvalidRequest(
            f"speculation length {speculation.length} exceeds the {card.longest_draft} that {card.id} takes; send less",
            "speculation",
        )
    if not card.exits or speculation.depth in card.exits:
        return
    raise InvalidRequest(
        f"speculation depth {speculation.depth} is no exit of the drafter of {card.id}; "
        f"send one of {', '.join(map(str, card.exits))}",
        "speculation",
    )
