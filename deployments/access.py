"""Who may call a server: the keys that its config and its environment name, and whether it needs any."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import ray
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

from api.door import Door
from api.keys import ADMIN_KEYS, KEYS, AnyOf, FixedKeys, KeyFile, Keys, listed_keys
from deployments.config import AppConfig
from deployments.config_access import AccessConfig
from protocol.errors import ConfigError


def open_door(access: AccessConfig, environment: Mapping[str, str], *, is_public: bool) -> Door:
    """Raises ConfigError for keys that cannot be read, or are missing on a server that listens beyond loopback."""
    keys = keys_of(access.keys_file, environment, KEYS)
    admin_keys = keys_of(access.admin_keys_file, environment, ADMIN_KEYS)
    if is_public and not access.open:
        required("access.keys_file", keys, KEYS)
        required("access.admin_keys_file", admin_keys, ADMIN_KEYS)
    return Door(keys, admin_keys)


def keys_of(file: str | None, environment: Mapping[str, str], variable: str) -> Keys | None:
    """All keys of a file and a variable; None if neither is given."""
    sources: list[Keys] = [] if file is None else [KeyFile(Path(file))]
    if given := listed_keys(environment, variable):
        sources.append(FixedKeys(given, variable))
    return AnyOf(sources) if sources else None


def required(key: str, keys: Keys | None, variable: str) -> None:
    if keys is None:
        raise ConfigError(
            f"{key} is missing, and the server listens beyond loopback; name a file with one key a line, set "
            f"{variable}, or let anybody in by access: {{open: true}}"
        )


def check_access(config: AppConfig, environment: Mapping[str, str]) -> None:
    """Raises ConfigError if a Serve that is started for this config would have to refuse it."""
    is_public = not is_loopback(config.http.host) or config.grpc is not None
    open_door(config.access, environment, is_public=is_public)


async def listens_beyond_loopback() -> bool:
    """Whether the proxies of the Serve that this replica belongs to do. A config only says so where it starts Serve."""
    controller: Any = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    http, grpc = await controller.get_http_config.remote(), await controller.get_grpc_config.remote()
    listens_for_grpc = bool(grpc.port and grpc.grpc_servicer_functions)  # on every interface
    return listens_for_grpc or not is_loopback(http.host)


def is_loopback(host: str | None) -> bool:
    """Whether only this machine reaches it; other names than localhost may lead anywhere."""
    try:
        return host in ("localhost", None) or ip_address(str(host)).is_loopback
    except ValueError:
        return False
