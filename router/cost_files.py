"""Cost curves as JSON. A file that is not understood to the last key is refused: a guess would be believed for weeks.

Curves belong to a device, a model, a dtype, a number of threads and the versions that ran; these keys stand in the
file, and their hash is its name in the cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any, TypeVar

from protocol.errors import ConfigError
from router.costs import (
    DRAFT_AXES,
    PREFILL_AXES,
    ROW_AXES,
    VERIFY_AXES,
    CostCurves,
    Curve,
    DrafterCosts,
    ModelKey,
    TargetCosts,
)

SCHEMA_VERSION = 1

T = TypeVar("T", TargetCosts, DrafterCosts)


def cache_name(target: ModelKey, drafter: ModelKey | None) -> str:
    """The file name under which the curves of these two are kept."""
    keys = json.dumps([asdict(target), drafter and asdict(drafter)], sort_keys=True)
    return hashlib.sha256(keys.encode()).hexdigest()[:16] + ".json"


def dumps(curves: Sequence[CostCurves]) -> str:
    return json.dumps({"schema_version": SCHEMA_VERSION, "curves": [asdict(one) for one in curves]}, indent=1) + "\n"


def loads(text: str, where: str) -> tuple[CostCurves, ...]:
    """`where` names the file in errors. Raises ConfigError for anything that `dumps` of this version does not write."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where} is not JSON ({error}); run draftpool profile again") from None
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version != SCHEMA_VERSION:
        raise ConfigError(f"{where}: schema_version {version!r} is not {SCHEMA_VERSION}; run draftpool profile again")
    try:
        _check_names(values, {"schema_version", "curves"})
        return tuple(_curves(one) for one in values["curves"])
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{where}: {error}; run draftpool profile again") from None


def _curves(value: Any) -> CostCurves:
    _check_names(value, {"name", "target", "drafter"})
    drafter = value["drafter"]
    target = _record(TargetCosts, value["target"], verify=VERIFY_AXES, prefill=PREFILL_AXES, overhead=ROW_AXES)
    return CostCurves(
        value["name"],
        target,
        None if drafter is None else _record(DrafterCosts, drafter, draft=DRAFT_AXES, link=ROW_AXES),
    )


def _record(kind: type[T], value: Any, **axes: tuple[str, ...]) -> T:
    """A TargetCosts or DrafterCosts, whose curves are named with their axes."""
    _check_names(value, {"key", "error", *axes})
    _check_names(value["key"], {each.name for each in fields(ModelKey)})
    return kind(
        key=ModelKey(**value["key"]),
        error=float(value["error"]),
        **{name: _curve(value[name], wanted) for name, wanted in axes.items()},
    )


def _curve(value: Any, axes: tuple[str, ...]) -> Curve:
    _check_names(value, {each.name for each in fields(Curve)})
    if tuple(value["axes"]) != axes:
        raise ConfigError(f"a curve over {value['axes']} stands where one over {list(axes)} belongs")
    return Curve(axes, tuple(tuple(map(float, points)) for points in value["points"]), tuple(map(float, value["ms"])))


def _check_names(value: Any, names: set[str]) -> None:
    if not isinstance(value, dict):
        raise ConfigError(f"an object with {', '.join(sorted(names))} belongs where {value!r} stands")
    if wrong := sorted(value.keys() ^ names):
        raise ConfigError(f"{wrong[0]!r} is {'missing' if wrong[0] in names else 'no key of this schema'}")
