"""What all bodies of requests share: unknown fields are refused, null is the default, and JSON inside has bounds."""

from __future__ import annotations

from math import isfinite
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from api import unsupported
from protocol.errors import InvalidRequest

MAX_DEPTH = 32


class Body(BaseModel):
    """only, dropped: fields to refuse unless they have these values, and fields to ignore."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    only: ClassVar[unsupported.Allowed] = {}
    dropped: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, fields: Any) -> Any:
        return unsupported.supported(fields, cls.only, cls.dropped) if isinstance(fields, dict) else fields

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """With null for what may be left out, and with the fields that are taken and not heeded."""
        schema = handler.resolve_ref_schema(handler(core))
        fields, required = schema["properties"], schema.get("required", ())
        for name in fields.keys() - required:
            if {"type": "null"} not in fields[name].get("anyOf", ()):
                beside = {key: fields[name].pop(key) for key in ("title", "default") if key in fields[name]}
                fields[name] = {"anyOf": [fields[name], {"type": "null"}], **beside}
        for name in sorted(cls.only):
            fields[name] = {"enum": [*cls.only[name], None], "description": "not supported but for these values"}
        for name in sorted(cls.dropped - fields.keys()):
            fields[name] = {"description": "taken, and without effect"}
        return schema


def _plain(value: Any, depth: int = 0) -> None:
    """Raises InvalidRequest for what is not JSON, or nested too deep for those who walk through it."""
    if depth > MAX_DEPTH:
        raise InvalidRequest(f"nested more than {MAX_DEPTH} deep; send something flatter")
    if isinstance(value, float) and not isfinite(value):
        raise InvalidRequest(f"{value} is no JSON; leave it out")
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for each in inside:
        _plain(each, depth + 1)


def _plain_object(value: dict[str, Any]) -> dict[str, Any]:
    _plain(value)
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(_plain_object)]
