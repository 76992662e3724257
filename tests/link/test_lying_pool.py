"""A draft replica that holds the secret and lies: its link ends, nothing is raised, and the target decodes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from link.transport import LinkedDraftClient
from protocol.draft import DraftBlock, DraftReply, DraftRequest, DraftStatus
from protocol.wire import encode_pool
from router.policy import Fixed, Off
from targets.complete import complete
from targets.engine import Engine, EngineConfig
from targets.model import TargetModel, load_target
from tests.deployments.harness import (
    DEPTH,
    TARGET,
    Directory,
    LoopThread,
    ScriptedPool,
    client,
    generate,
    request,
    wait_until,
)
from tests.link.rig import drafting_on

Lie = Callable[[DraftBlock], DraftBlock]

LIES: dict[str, Lie] = {
    "confidence nan": lambda block: replace(block, confidences=(math.nan,) * 3),
    "confidence 2": lambda block: replace(block, confidences=(2.0,) * 3),
    "no confidences": lambda block: replace(block, confidences=()),
    "too many tokens": lambda block: replace(block, tokens=(1,) * 9, confidences=(0.5,) * 9),
    "huge token": lambda block: replace(block, tokens=(1 << 31, 1, 1)),
    "busy with tokens": lambda block: replace(block, status=DraftStatus.BUSY),
}
HARMLESS: dict[str, Lie] = {
    "beyond the vocabulary": lambda block: replace(block, tokens=(1 << 30,) * len(block.tokens)),
    "no tokens": lambda block: replace(block, tokens=(), confidences=()),
}


def lying(pool: ScriptedPool, lie: Lie) -> None:
    submit = pool.worker.submit

    def changed(asked: DraftRequest, reply: Callable[[DraftReply], None]) -> None:
        submit(asked, lambda full: reply(replace(full, blocks=tuple(map(lie, full.blocks)))))

    pool.worker.submit = changed  # type: ignore[method-assign]


@pytest.mark.parametrize("name", LIES)
def test_a_lie_ends_the_link_and_the_round_goes_without(
    runner: LoopThread, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    pool = ScriptedPool()
    with drafting_on(runner, pool, avoid_s=60.0) as drafts:
        assert drafts.draft(request(1, (1, 0, 4)))
        lying(pool, LIES[name])
        assert drafts.draft(request(2, (1, 0, 5))) is None
        assert drafts.replica is None
    assert "draft replica pool-0 is left" in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("data", [b"", b"\xff" * 30, b"\x0a\x02\x12\x00", b"\x12\x04\x12\x02\x08\x01"])
def test_what_is_no_answer_ends_the_link_or_is_nothing(runner: LoopThread, data: bytes) -> None:
    pool = ScriptedPool()
    with client(runner, Directory(pool), avoid_s=0.05) as drafts:
        wait_until(lambda: drafts.replica and pool.server._targets)
        next(iter(pool.server._targets)).connection.send(data)
        drafts.branches(0.1)
        wait_until(lambda: drafts.draft(request(2, (1, 0, 4))) is not None)
    pool.kill()


@pytest.fixture(scope="module")
def target(family: Path) -> TargetModel:
    return load_target(family / "small", dtype=torch.float32, num_positions=2048, page_size=16)


def texts(target: TargetModel, policy: Any, drafts: LinkedDraftClient | None) -> Sequence[tuple[int, ...]]:
    with Engine(target, policy, drafts, EngineConfig(incarnation=TARGET)) as engine:
        return [one.token_ids for one in complete(engine, [generate(index) for index in range(3)])]


@pytest.mark.parametrize("name", [*LIES, *HARMLESS])
def test_no_lie_changes_a_text(runner: LoopThread, target: TargetModel, name: str) -> None:
    plain = texts(target, Off(), None)
    pool = ScriptedPool()
    lying(pool, (LIES | HARMLESS)[name])
    with drafting_on(runner, pool, avoid_s=0.05) as drafts:
        assert texts(target, Fixed(DEPTH, 3), drafts) == plain
        assert pool.worker.seen


def test_a_row_too_long_for_the_drafter_is_told_so_without_being_sent(runner: LoopThread) -> None:
    pool = ScriptedPool()
    with drafting_on(runner, pool) as drafts:
        reply = drafts.draft(request(1, (1, 0, 2049), (2, 0, 2048)))
        assert reply is not None
        assert [block.status for block in reply.blocks] == [DraftStatus.TOO_LONG, DraftStatus.OK]
        assert [row.sequence_id for row in pool.worker.seen[-1].rows] == [2]


def test_whatever_goes_wrong_while_it_rests_a_target_goes_on_looking(
    runner: LoopThread, caplog: pytest.LogCaptureFixture
) -> None:
    """The task that keeps the link ended, unseen, and the target never drafted again."""
    directory = Directory()
    with client(runner, directory) as drafts:
        wait_until(lambda: directory.asked > 1)
        rest, failures = drafts._links._rest, [RuntimeError("scripted")] * 3

        async def fails() -> None:
            if failures:
                raise failures.pop()
            await rest()

        drafts._links._rest = fails  # type: ignore[method-assign]
        wait_until(lambda: not failures)
        pool = ScriptedPool()
        directory.pools.append(pool)
        wait_until(lambda: drafts.replica)
        assert drafts.draft(request(1, (1, 0, 4)))
    assert "it is tried again" in caplog.text
    pool.kill()


def test_encoding_leaves_out_who_it_is_for() -> None:
    reply = DraftReply("a", 1, ())
    assert encode_pool(reply) == encode_pool(replace(reply, incarnation="b"))
