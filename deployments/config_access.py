"""The config section about who may call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from deployments.config_section import Section

FILES = ("keys_file", "admin_keys_file")


class AccessConfig(Section):
    """Who may call.

    open: whether anybody may, although the server listens beyond loopback. keys_file: API keys, one a line.
    admin_keys_file: keys that open /debug and /metrics too. Beside files, keys come from the environment
    (deployments/access.py), and never from here.
    """

    open: bool = False
    keys_file: str | None = None
    admin_keys_file: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_keys(cls, values: Any) -> Any:
        """Errors of other sections show the value; here it may be a secret."""
        if isinstance(values, cls):
            return values
        if not isinstance(values, Mapping):
            raise ValueError("a mapping of keys is needed; API keys do not belong in a config")
        if unknown := sorted(map(str, values.keys() - cls.model_fields.keys())):
            known = ", ".join(sorted(cls.model_fields))
            raise ValueError(f"unknown key {unknown[0]}; choose one of {known}. API keys do not belong in a config")
        for name in FILES:
            if not isinstance(values.get(name), str | None):
                raise ValueError(f"{name} is not the name of a file; API keys do not belong in a config")
        return values

    def beside(self, folder: Path) -> Self:
        """With relative files resolved against the folder of the config file."""
        given = {name: getattr(self, name) for name in FILES}
        resolved = {name: str((folder / Path(file).expanduser()).resolve()) for name, file in given.items() if file}
        return self.model_copy(update=resolved)
