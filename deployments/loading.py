"""How far replicas are that start: each writes its stage down in the cluster, where `serve` and the ingress read it.

Ray's control store holds one short value a replica, which goes when the replica has started. Advisory: where it cannot
be written or read, nobody waits.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

from ray.experimental import internal_kv

SPACE = b"draftpool-loading"
STALE_S = 600.0  # of a replica that was lost as it started

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stage:
    """Of a replica of this deployment. done, total: parts of the phase; 0 where it has none. at: seconds since 1970."""

    deployment: str
    phase: str
    done: int = 0
    total: int = 0
    at: float = 0.0

    @property
    def progress(self) -> str:
        return f"{self.phase}, {self.done} of {self.total}" if self.total else self.phase

    def __str__(self) -> str:
        return f"{self.deployment}: {self.progress}"


class Loading:
    """What one replica writes."""

    def __init__(self, deployment: str, replica: str) -> None:
        self._deployment, self._key = deployment, replica.encode()

    def phase(self, phase: str) -> None:
        logger.info("%s: %s", self._deployment, phase)
        self._write(Stage(self._deployment, phase))

    def weights(self, done: int, total: int) -> None:
        """Of the checkpoint, as model.load.Progress."""
        self._write(Stage(self._deployment, "weights", done, total))

    def _write(self, stage: Stage) -> None:
        value = json.dumps(asdict(stage) | {"at": time.time()})
        with suppress(Exception):
            internal_kv._internal_kv_put(self._key, value.encode(), namespace=SPACE)

    def end(self) -> None:
        with suppress(Exception):
            internal_kv._internal_kv_del(self._key, namespace=SPACE)


@contextmanager
def shown(deployment: str, replica: str) -> Iterator[Loading]:
    """Around the start of a replica."""
    loading = Loading(deployment, replica)
    loading.phase("weights")
    try:
        yield loading
    finally:
        loading.end()


def stages() -> list[Stage]:
    """Of all replicas that start now, by deployment."""
    found = []
    with suppress(Exception):
        for key in internal_kv._internal_kv_list(b"", namespace=SPACE):
            value = internal_kv._internal_kv_get(key, namespace=SPACE)
            if value and (stage := Stage(**json.loads(value))).at > time.time() - STALE_S:
                found.append(stage)
    return sorted(found, key=str)
