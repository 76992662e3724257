"""Python packages on disk, as pip leaves them. To import one is an error."""

from __future__ import annotations

from pathlib import Path


def make_package(site: Path, name: str, version: str) -> Path:
    """Writes the package into the folder `site`, and returns the package's own folder."""
    module = name.replace("-", "_")
    folder, about = site / module, site / f"{module}-{version}.dist-info"
    folder.mkdir()
    about.mkdir()
    (folder / "__init__.py").write_text("raise AssertionError('a package of weights is never imported')\n")
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return folder
