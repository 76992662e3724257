"""What happens to a request whose replica is lost: where it goes on, what is never tried again, and when it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from itertools import pairwise
from typing import Any

import pytest

from api import survival
from api.generation import BackendFault
from api.survival import Recovery, survive
from protocol.errors import InvalidRequest, NotReady, QueueFull
from protocol.request import FinishReason, GenerateRequest, SamplingParams, SequenceStats, StopRules, TokenRun

PROMPT, TEXT = (31337, 31338), (31341, 31342, 31343, 31344, 31345)
REQUEST = GenerateRequest("r", PROMPT, SamplingParams(seed=7), StopRules(len(TEXT)))
LOST = NotReady("the replica that had the request was lost")
FULL = QueueFull("9 requests are queued")

Script = Callable[[GenerateRequest], Sequence[Any]]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survival, "FIRST_PAUSE_S", 0.0)


class Replicas:
    """Each time the request is issued the next script says what comes of it; the last one stays."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts, self.issued, self.num_open = scripts, list[GenerateRequest](), 0

    async def __call__(self, request: GenerateRequest) -> AsyncGenerator[TokenRun, None]:
        script = self.scripts[min(len(self.issued), len(self.scripts) - 1)]
        self.issued.append(request)
        self.num_open += 1
        try:
            for step in script(request):
                if isinstance(step, Exception):
                    raise step
                await (step.wait() if isinstance(step, asyncio.Event) else asyncio.sleep(0))
                if isinstance(step, TokenRun):
                    yield step
        finally:
            self.num_open -= 1


def gives(count: int, then: Any = None, *, reason: FinishReason | None = None) -> Script:
    """A replica that goes on with the text, up to so many tokens of it, and then does something else."""

    def script(request: GenerateRequest) -> list[Any]:
        first = len(request.resume_ids)
        stats = SequenceStats(2, 0, 0) if reason else None
        runs = [TokenRun(request.request_id, at, TEXT[at : at + 1]) for at in range(first, count - 1)]
        last = TokenRun(request.request_id, first, TEXT[first:count], reason, stats)
        return [*runs, last, *([then] if then is not None else [])]

    return script


whole = gives(len(TEXT), reason=FinishReason.LENGTH)


async def survived(replicas: Replicas, recovery: Recovery | None = None) -> list[TokenRun]:
    async with aclosing(survive(replicas, REQUEST, recovery or Recovery())) as runs:
        return [run async for run in runs]


def tokens(runs: Sequence[TokenRun]) -> tuple[int, ...]:
    for before, after in pairwise(runs):
        assert after.index == before.index + len(before.token_ids)
    return tuple(token for run in runs for token in run.token_ids)


@pytest.mark.parametrize("count", range(1, len(TEXT) + 1))
async def test_it_goes_on_behind_the_tokens_that_came(count: int) -> None:
    replicas = Replicas(gives(count, LOST), whole)
    runs = await survived(replicas)
    assert tokens(runs) == TEXT
    assert {run.request_id for run in runs} == {"r"}
    assert [run.finish_reason for run in runs] == [None] * (len(runs) - 1) + [FinishReason.LENGTH]
    first, second = replicas.issued
    assert first == REQUEST
    assert second.resume_ids == TEXT[:count]
    assert second.request_id != first.request_id
    unchanged = [(each.prompt_ids, each.sampling, each.stop, each.speculation) for each in replicas.issued]
    assert unchanged[0] == unchanged[1]


async def test_it_goes_on_as_often_as_recovery_allows_and_then_ends_with_the_last_error() -> None:
    replicas = Replicas(*[gives(count, LOST) for count in (1, 2, 2, 4)], whole)
    assert tokens(await survived(replicas, Recovery(4))) == TEXT
    replicas = Replicas(*[gives(count, LOST) for count in (1, 2, 2, 4)], whole)
    with pytest.raises(NotReady, match="lost"):
        await survived(replicas, Recovery(3))
    assert [each.resume_ids for each in replicas.issued] == [(), TEXT[:1], TEXT[:2], TEXT[:2]]
    assert len({each.request_id for each in replicas.issued}) == 4
    assert replicas.num_open == 0


@pytest.mark.parametrize(
    "error", [InvalidRequest("no", "top_k"), RuntimeError("secret"), BackendFault("the engine failed")]
)
async def test_an_error_of_the_request_is_not_tried_again(error: Exception) -> None:
    replicas = Replicas(gives(2, error), whole)
    with pytest.raises(type(error)):
        await survived(replicas)
    assert len(replicas.issued) == 1


@pytest.mark.parametrize("reason", [FinishReason.ERROR, FinishReason.UNDEFINED, FinishReason.ABORT])
async def test_an_answer_that_ends_badly_is_not_tried_again(reason: FinishReason) -> None:
    replicas = Replicas(gives(2, reason=reason), whole)
    assert (await survived(replicas))[-1].finish_reason is reason
    assert len(replicas.issued) == 1


async def test_a_replica_that_is_stopped_hands_over_what_it_has() -> None:
    replicas = Replicas(gives(3, reason=FinishReason.CLOSED), whole)
    runs = await survived(replicas)
    assert tokens(runs) == TEXT
    assert [run.finish_reason for run in runs if run.finish_reason] == [FinishReason.LENGTH]
    assert [run.stats for run in runs[:-1]] == [None] * (len(runs) - 1)
    assert replicas.issued[1].resume_ids == TEXT[:3]


async def test_a_full_queue_is_an_error_at_first_and_waited_for_once_a_replica_was_lost() -> None:
    replicas = Replicas(lambda request: [FULL], whole)
    with pytest.raises(QueueFull):
        await survived(replicas)
    assert len(replicas.issued) == 1
    replicas = Replicas(gives(2, LOST), *[lambda request: [FULL]] * 9, whole)
    assert tokens(await survived(replicas, Recovery(1))) == TEXT


async def test_the_search_ends_when_nothing_has_come_for_too_long() -> None:
    replicas = Replicas(gives(2, LOST), lambda request: [FULL])
    with pytest.raises(QueueFull):
        await survived(replicas, Recovery(within_s=0.1))
    assert len(replicas.issued) > 2


async def test_tokens_that_differ_from_those_that_went_out_end_the_answer() -> None:
    def other(request: GenerateRequest) -> list[Any]:
        return [TokenRun("r", 0, (TEXT[0], 9, *TEXT[2:]), FinishReason.LENGTH, SequenceStats())]

    with pytest.raises(BackendFault, match="differ"):
        await survived(Replicas(gives(3, LOST), other))


async def test_a_replica_that_forgets_tokens_ends_the_answer() -> None:
    def forgets(request: GenerateRequest) -> list[Any]:
        return [TokenRun("r", 4, TEXT[4:], FinishReason.LENGTH, SequenceStats())]

    with pytest.raises(BackendFault, match="tokens 3 to 3 are missing"):
        await survived(Replicas(gives(3, LOST), forgets))


async def test_closing_it_ends_the_attempt_that_is_under_way() -> None:
    replicas = Replicas(gives(1, LOST), gives(2, asyncio.Event()))
    async with aclosing(survive(replicas, REQUEST, Recovery())) as runs:
        assert [(await anext(runs)).index for _ in range(2)] == [0, 1]
        assert replicas.num_open == 1
    assert replicas.num_open == 0


async def test_cancelling_its_reader_ends_the_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survival, "FIRST_PAUSE_S", 3600.0)
    replicas = Replicas(gives(1, LOST), whole)
    reader = asyncio.create_task(survived(replicas))
    while not replicas.issued or replicas.num_open:
        await asyncio.sleep(0)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert len(replicas.issued) == 1


async def test_the_log_says_why_and_holds_neither_prompt_nor_text(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        await survived(Replicas(gives(3, LOST), whole))
    assert "request r is issued again behind 3 tokens: the replica that had the request was lost" in caplog.text
    assert "313" not in caplog.text
