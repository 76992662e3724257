"""Costs as JSON. A file that is not understood to the last key is refused: a guess would be believed for weeks.

Costs belong to a device, a model, a dtype, a number of threads and the versions that ran; this key stands in the
file, and its hash is the file's name in the cache. There, targets and drafters are kept apart, for each may be used
with many of the others; a file of curves holds them together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from types import MappingProxyType
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

SCHEMA_VERSION = 2

T = TypeVar("T", TargetCosts, DrafterCosts)

NAMES: Mapping[type, str] = MappingProxyType({TargetCosts: "target", DrafterCosts: "drafter"})
AXES: Mapping[type, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        TargetCosts: {"verify": VERIFY_AXES, "prefill": PREFILL_AXES, "overhead": ROW_AXES},
        DrafterCosts: {"draft": DRAFT_AXES, "link": ROW_AXES},
    }
)


def cache_name(kind: type[TargetCosts] | type[DrafterCosts], key: ModelKey) -> str:
    """The file name under which the costs of this kind and key are kept."""
    text = json.dumps(asdict(key), sort_keys=True)
    return f"{NAMES[kind]}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def dumps(curves: Sequence[CostCurves]) -> str:
    return _written("curves", [asdict(one) for one in curves])


def dumps_costs(costs: TargetCosts | DrafterCosts) -> str:
    """The costs of one model."""
    return _written(NAMES[type(costs)], asdict(costs))


def loads(text: str, where: str) -> tuple[CostCurves, ...]:
    """`where` names the file in errors. Raises ConfigError for anything that `dumps` of this version does not write."""
    values = _read(text, "curves", where)
    try:
        return tuple(_curves(one) for one in values)
    except (ConfigError, TypeError) as error:
        raise _refused(where, error) from None


def loads_costs(kind: type[T], text: str, where: str) -> T:
    """Raises ConfigError for anything that `dumps_costs` of this version does not write of this kind."""
    value = _read(text, NAMES[kind], where)
    try:
        return _costs(kind, value)
    except (ConfigError, TypeError) as error:
        raise _refused(where, error) from None


def _written(name: str, value: Any) -> str:
    return json.dumps({"schema_version": SCHEMA_VERSION, name: value}, indent=1) + "\n"


def _read(text: str, name: str, where: str) -> Any:
    """What stands under the name, which is all there is."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where} is not JSON ({error}); run draftpool profile again") from None
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version != SCHEMA_VERSION:
        raise ConfigError(f"{where}: schema_version {version!r} is not {SCHEMA_VERSION}; run draftpool profile again")
    try:
        _check_names(values, {"schema_version", name})
    except ConfigError as error:
        raise _refused(where, error) from None
    return values[name]


def _refused(where: str, error: Exception) -> ConfigError:
    return ConfigError(f"{where}: {error}; run draftpool profile again")


def _curves(value: Any) -> CostCurves:
    _check_names(value, {"name", "target", "drafter"})
    drafter = value["drafter"]
    return CostCurves(
        value["name"],
        _costs(TargetCosts, value["target"]),
        None if drafter is None else _costs(DrafterCosts, drafter),
    )


def _costs(kind: type[T], value: Any) -> T:
    """Curves are named with their axes."""
    _check_names(value, {"key", "error", *AXES[kind]})
    _check_names(value["key"], {each.name for each in fields(ModelKey)})
    return kind(
        key=ModelKey(**value["key"]),
        error=float(value["error"]),
        **{name: _curve(value[name], axes) for name, axes in AXES[kind].items()},
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
