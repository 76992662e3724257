"""What a target that drafts ahead says to the pool, in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from model.decoder import Decoder
from protocol.branch import AheadRequest, AheadRow, ExitHint
from protocol.draft import DraftRequest
from protocol.request import GenerateRequest
from router.policy import Fixed
from targets.ahead import AheadConfig
from tests.model.families import VOCAB
from tests.reference.engine import plain_texts, random_requests, run_all
from tests.targets.ahead import AHEAD, EARLY, SHALLOW, Connect, engine_of, one_request
from tests.targets.conftest import LoadTarget

Message = DraftRequest | AheadRequest | ExitHint


def said(
    load: LoadTarget, drafter: Decoder, requests: list[GenerateRequest], ahead: AheadConfig, **config: int
) -> list[Message]:
    """What the target says, in order."""
    client, messages = Connect(drafter)(), list[Message]()
    for name in ("open", "draft", "ahead", "hint"):
        setattr(client, name, recording(getattr(client, name), messages))
    engine = engine_of(load, client, Fixed(SHALLOW, 3, ahead.modes[0]), ahead, **config)
    assert run_all(engine, requests).tokens == plain_texts(load(), requests)
    return messages


def recording(call: Callable[[Any], Any], messages: list[Message]) -> Callable[[Any], Any]:
    def record(message: Message) -> Any:
        messages.append(message)
        return call(message)

    return record


def test_the_pool_is_handed_each_committed_token_once_and_then_what_is_verified(
    load: LoadTarget, drafter: Decoder
) -> None:
    request = one_request(num_tokens=40)
    messages = said(load, drafter, [request], EARLY)
    text = [*request.prompt_ids, *plain_texts(load(), [request])["3"]]
    known: list[int] = []
    for message in messages:
        for row in () if isinstance(message, ExitHint) else message.rows:
            context = row.context if isinstance(row, AheadRow) else row
            assert context.start == len(known)
            known += context.tokens
    assert known == text[: len(known)]
    assert len(known) > 20


def test_a_hint_follows_what_is_verified_and_has_picks_for_every_place_behind_prompts_too(
    load: LoadTarget, drafter: Decoder
) -> None:
    requests = random_requests(4, 9, VOCAB, max_tokens=24)
    messages = said(load, drafter, requests, EARLY, max_batch=3, prefill_chunk=7)
    aheads = [message for message in messages if isinstance(message, AheadRequest)]
    hints = [message for message in messages if isinstance(message, ExitHint)]
    kinds = [type(message) for message in messages if not isinstance(message, DraftRequest)]
    assert kinds == [AheadRequest, ExitHint] * len(hints)
    prompts = {i: len(request.prompt_ids) for i, request in enumerate(requests)}
    num_first = 0
    for asked, hint in zip(aheads, hints, strict=True):
        assert hint.round_id == asked.round_id
        for row, own in zip(hint.rows, asked.rows, strict=True):
            verified = own.proposal
            assert (row.sequence_id, row.base_length) == (own.context.sequence_id, own.context.base_length)
            assert [len(picks) for picks in row.picks] == [2] * (len(verified) + 1)
            if row.base_length == prompts[row.sequence_id]:
                num_first += 1
                assert verified == ()
    assert num_first > 3


def test_without_early_exits_there_is_no_hint_and_large_batches_get_fewer_branches(
    load: LoadTarget, drafter: Decoder
) -> None:
    messages = said(load, drafter, random_requests(2, 12, VOCAB, max_tokens=12), AHEAD)
    assert not any(isinstance(message, ExitHint) for message in messages)
    for message in messages:
        if not isinstance(message, AheadRequest):
            continue
        assert {row.fan_out for row in message.rows} <= set(range(64 // 12, min(8, 64 // len(message.rows)) + 1))
