"""How far replicas are that start: each writes its stage down in the cluster, where `serve` and the ingress read it.

Ray's control store holds one short value a replica, which goes when the replica has started, and how long the last
start of each deployment took. Advisory: where it cannot be written or read, nobody waits.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

from ray.experimental import internal_kv

from api.backend import Starting

SPACE, TOOK = b"draftpool-loading", b"draftpool-loading-took"
STALE_S = 600.0  # of a replica that was lost as it started

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stage:
    """How far a replica of this deployment has started. done, total: parts of the phase; 0 if it has none.

    began, at: of the start and of this stage, in seconds since 1970.
    """

    deployment: str
    phase: str
    done: int = 0
    total: int = 0
    began: float = 0.0
    at: float = 0.0

    @property
    def progress(self) -> str:
        return f"{self.phase}, {self.done} of {self.total}" if self.total else self.phase

    def left_s(self, before_s: float | None, now: float) -> float | None:
        """Seconds until it has started; None: not known, or this start takes longer than the last one.

        before_s: what the last start took, which may have been of other weights. Without one the share of the weights
        that is loaded counts.
        """
        passed_s = now - self.began
        if before_s is not None:
            return before_s - passed_s if before_s > passed_s else None
        return passed_s * (self.total - self.done) / self.done if self.done else None

    def __str__(self) -> str:
        return f"{self.deployment}: {self.progress}"


class Loading:
    """What one replica writes."""

    def __init__(self, deployment: str, replica: str) -> None:
        self._deployment, self._key, self._began = deployment, replica.encode(), time.time()

    def phase(self, phase: str) -> None:
        logger.info("%s: %s", self._deployment, phase)
        self._write(Stage(self._deployment, phase))

    def weights(self, done: int, total: int) -> None:
        """Of the checkpoint, as model.load.Progress."""
        self._write(Stage(self._deployment, "weights", done, total))

    def _write(self, stage: Stage) -> None:
        value = json.dumps(asdict(stage) | {"began": self._began, "at": time.time()})
        with suppress(Exception):
            internal_kv._internal_kv_put(self._key, value.encode(), namespace=SPACE)

    def started(self) -> None:
        took_s = f"{time.time() - self._began:.3f}"
        with suppress(Exception):
            internal_kv._internal_kv_put(self._deployment.encode(), took_s.encode(), namespace=TOOK)

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
        loading.started()
    finally:
        loading.end()


def stages() -> list[Stage]:
    """Of all replicas that are starting, by deployment. Deletes the entries of those that were lost on the way."""
    found = []
    with suppress(Exception):
        for key in internal_kv._internal_kv_list(b"", namespace=SPACE):
            stage = _read(internal_kv._internal_kv_get(key, namespace=SPACE))
            if stage is None:
                continue
            if stage.at > time.time() - STALE_S:
                found.append(stage)
            else:
                internal_kv._internal_kv_del(key, namespace=SPACE)
    return sorted(found, key=str)


def _read(value: bytes | None) -> Stage | None:
    """None if the replica has started since, or if the value is no stage."""
    try:
        return Stage(**json.loads(value)) if value else None
    except (TypeError, ValueError):
        return None


def start_took_s(deployment: str) -> float | None:
    """How long the last replica of the deployment took to start on this cluster; None: none has, or nobody knows."""
    with suppress(Exception):
        if value := internal_kv._internal_kv_get(deployment.encode(), namespace=TOOK):
            return float(value)
    return None


def awaited(deployment: str, now: float) -> Starting:
    """How far those replicas of a deployment are that are starting now."""
    found = [stage for stage in stages() if stage.deployment == deployment]
    before_s = start_took_s(deployment) if found else None
    left = [left_s for stage in found if (left_s := stage.left_s(before_s, now)) is not None]
    return Starting(", ".join(stage.progress for stage in found), min(left, default=None))
