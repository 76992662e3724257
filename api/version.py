"""The version of this package, as installed."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """ "unknown" in a checkout that is not installed."""
    try:
        return metadata.version("draftpool")
    except metadata.PackageNotFoundError:
        return "unknown"
