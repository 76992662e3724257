"""A draft replica on this machine and a client of it: they find each other, and nothing stays behind."""

from __future__ import annotations

import threading
import time

import pytest

from link import loopback
from link.pool_thread import PoolThread
from protocol.draft import DraftRequest, DraftRow
from tests.deployments.harness import DEPTH, EXITS, SAMPLING, ScriptedWorker


async def test_a_client_is_linked_with_the_replica_and_gets_its_drafts() -> None:
    thread = PoolThread(ScriptedWorker(), time.monotonic)
    with loopback.listening(thread, EXITS, 64, 8) as member:
        client = await loopback.connect(member, "target", deadline_s=5.0)
        rows = (DraftRow(7, 0, (1, 2), 3, SAMPLING),)
        reply = client.draft(DraftRequest("target", 1, DEPTH, rows))
        await client.stop()
    assert reply is not None
    assert [block.tokens for block in reply.blocks] == [(2, 3, 4)]
    assert "draft-worker" not in [one.name for one in threading.enumerate()]


async def test_a_replica_that_is_gone_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loopback, "CONNECT_S", 0.2)
    with loopback.listening(PoolThread(ScriptedWorker(), time.monotonic), EXITS, 64, 8) as member:
        pass
    with pytest.raises(TimeoutError):
        await loopback.connect(member, "target", deadline_s=5.0)
