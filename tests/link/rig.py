"""A client and the one scripted draft replica that it is linked to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from link.transport import LinkedDraftClient
from tests.deployments.harness import Directory, LoopThread, ScriptedPool, client, wait_until


@contextmanager
def drafting_on(runner: LoopThread, pool: ScriptedPool, **config: Any) -> Iterator[LinkedDraftClient]:
    """The replica is gone behind the block."""
    with client(runner, Directory(pool), **config) as drafts:
        wait_until(lambda: drafts.replica)
        yield drafts
    pool.kill()
