"""What targets say of themselves, kept in the cluster: an ingress that starts while one is away knows it all the same.

Ray's control store holds one short value a target, which stays when its replicas are gone and goes with the
application. Advisory: where it cannot be written or read, a target is unknown until it answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ray.experimental import internal_kv

from api.version import version
from deployments.config import TargetConfig

SPACE = b"draftpool-targets"


def key_of(config: TargetConfig) -> str:
    """A key of the config and the version: what a target said under others does not count."""
    said_under = f"{version()} {config.model_dump_json()}"
    return f"{config.name}-{hashlib.sha256(said_under.encode()).hexdigest()[:16]}"


def remember(key: str, description: Mapping[str, Any]) -> None:
    with suppress(Exception):
        internal_kv._internal_kv_put(key.encode(), json.dumps(description).encode(), namespace=SPACE)


def recall(keys: Mapping[str, str], model: str) -> Mapping[str, Any] | None:
    """What a model said, with lists for tuples; None where nothing is known. keys: by model."""
    with suppress(Exception):
        value = internal_kv._internal_kv_get(keys[model].encode(), namespace=SPACE)
        found: Mapping[str, Any] | None = json.loads(value) if value else None
        return found
    return None


def forget_all() -> None:
    with suppress(Exception):
        for key in internal_kv._internal_kv_list(b"", namespace=SPACE):
            internal_kv._internal_kv_del(key, namespace=SPACE)
