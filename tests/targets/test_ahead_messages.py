"""What a target that drafts ahead says to the pool, in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from model.decoder import Decoder
from protocol.branch import AheadRequest, AheadRow
from protocol.draft import DraftRequest
from protocol.plan import Mode
from protocol.request import GenerateRequest
from router.policy import Fixed
from tests.model.families import VOCAB
from tests.reference.engine import plain_texts, random_requests, run_all
from tests.targets.ahead import SHALLOW, Connect, engine_of, one_request
from tests.targets.conftest import LoadTarget

Message = DraftRequest | AheadRequest


def said(load: LoadTarget, drafter: Decoder, requests: list[GenerateRequest], **config: int) -> list[Message]:
    """What the target says, in order."""
    client, messages = Connect(drafter)(), list[Message]()
    for name in ("open", "draft", "ahead"):
        setattr(client, name, recording(getattr(client, name), messages))
    engine = engine_of(load, client, Fixed(SHALLOW, 3, Mode.AHEAD), **config)
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
    messages = said(load, drafter, [request])
    text = [*request.prompt_ids, *plain_texts(load(), [request])["3"]]
    known: list[int] = []
    for message in messages:
        for row in message.rows:
            context = row.context if isinstance(row, AheadRow) else row
            assert context.start == len(known)
            known += context.tokens
    assert known == text[: len(known)]
    assert len(known) > 20


def test_a_prompt_that_ends_is_drafted_behind_with_nothing_to_verify(load: LoadTarget, drafter: Decoder) -> None:
    requests = random_requests(4, 9, VOCAB, max_tokens=24)
    messages = said(load, drafter, requests, max_batch=3, prefill_chunk=7)
    aheads = [message for message in messages if isinstance(message, AheadRequest)]
    ended = [
        row.proposal
        for message in aheads
        for row in message.rows
        if row.context.base_length == len(requests[row.context.sequence_id].prompt_ids)
    ]
    assert len(ended) > 3
    assert set(ended) == {()}
