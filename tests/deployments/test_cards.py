"""What an ingress knows of its targets, which are handles that play a script: said now, said before, or on the way."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from api.backend import Starting
from deployments.cards import LIFE_S, Cards
from tests.api.test_heartbeat import settle
from tests.deployments.handle_twins import TOLD, Handle, serving
from tests.deployments.harness import Clock


async def test_a_target_is_known_once_it_has_described_itself_whatever_the_others_do(tokenizer_path: str) -> None:
    async with serving(tokenizer_path, a=Handle(), b=Handle(told=ActorDiedError())) as backend:
        card = await backend.card("a")
        assert card is not None
        assert (card.id, card.max_model_len, card.vocab_size, card.eos_token_ids) == ("a", 64, 320, (1,))
        assert card.exits == (2, 4)
        assert await backend.card("b") is None
        assert backend.names == ("a", "b")
        assert card.max_batch == 4
        assert card.max_draft_length == 6
        assert [await backend.ready(name) for name in "ab"] == [True, False]


async def test_a_target_that_is_away_is_known_by_what_it_said_before(tokenizer_path: str) -> None:
    said: dict[str, Any] = {}
    clock = Clock()
    async with serving(tokenizer_path, a=Handle(told=ActorDiedError()), recall=said.get, clock=clock) as backend:
        assert await backend.card("a") is None, "it has never been there"
        said["a"] = json.loads(json.dumps(TOLD))
        clock.now += LIFE_S
        card = await backend.card("a")
        assert card is not None
        assert (card.max_model_len, card.eos_token_ids, card.exits) == (64, (1,), (2, 4))
        assert not await backend.ready("a"), "it is away all the same"


@pytest.mark.parametrize("said", [{}, [], "x", {"max_model_len": 64}, TOLD | {"exits": None}])
async def test_what_it_said_in_another_form_leaves_it_unknown(tokenizer_path: str, said: Any) -> None:
    async with serving(tokenizer_path, a=Handle(told=ActorDiedError()), recall=lambda _: said) as backend:
        assert await backend.card("a") is None


async def test_what_a_target_says_now_counts_more_than_what_it_said_before(tokenizer_path: str) -> None:
    async with serving(tokenizer_path, a=Handle(), recall=lambda _: TOLD | {"max_model_len": 32}) as backend:
        card = await backend.card("a")
        assert card is not None
        assert card.max_model_len == TOLD["max_model_len"]


async def test_a_target_is_ready_when_it_says_so(tokenizer_path: str) -> None:
    late = Handle(told=TOLD | {"ready": False})
    async with serving(tokenizer_path, a=Handle(), b=late) as backend:
        assert [await backend.ready(name) for name in "ab"] == [True, False]


async def test_the_latest_description_of_a_target_counts(tokenizer_path: str) -> None:
    async with serving(tokenizer_path, a=Handle()) as backend:
        assert await backend.card("a")
        backend._describe["a"].told = TOLD | {"max_model_len": 32}  # type: ignore[attr-defined]
        assert await backend.ready("a")
        card = await backend.card("a")
        assert card is not None
        assert card.max_model_len == 32


async def test_a_target_that_does_not_answer_delays_readiness_by_about_a_second(tokenizer_path: str) -> None:
    no_progress = {name: Handle(told=asyncio.Event()) for name in "ab"}
    async with serving(tokenizer_path, **no_progress) as backend:
        began = time.monotonic()
        assert not any(await asyncio.gather(*map(backend.ready, "ab")))
        assert time.monotonic() - began < 2


class Away:
    """Targets that do not answer, and a control store that does: who asks it what, and how often."""

    def __init__(self, *models: str) -> None:
        self.clock, self.gone = Clock(), asyncio.Event()
        self.asked, self.read, self.threads = Counter[str](), Counter[str](), set[str]()
        asks = {model: partial(self._ask, model) for model in models}
        self.cards = Cards(asks, {}, partial(self._read, "said"), partial(self._read, "starting"), self.clock)

    async def many(self, ask: Callable[[str], Awaitable[Any]], count: int = 40) -> set[Any]:
        """What so many who ask for model a get."""
        asked = [asyncio.ensure_future(ask("a")) for _ in range(count)]
        await settle()
        self.gone.set()
        return set(await asyncio.gather(*asked))

    async def _ask(self, model: str) -> Any:
        self.asked[model] += 1
        await self.gone.wait()
        raise ActorDiedError

    def _read(self, what: str, model: str) -> Any:
        self.read[f"{what} {model}"] += 1
        self.threads.add(threading.current_thread().name)
        return Starting(f"{self.read[f'{what} {model}']}") if what == "starting" else None


async def test_all_who_wait_for_one_model_share_a_question_to_it_and_one_to_the_store() -> None:
    away = Away("a")
    assert await away.many(away.cards.card) == {None}
    assert (away.asked, away.read) == ({"a": 1}, {"said a": 1})
    assert await away.many(away.cards.starting) == {Starting("1")}
    assert away.read["starting a"] == 1


async def test_what_the_store_answered_holds_for_a_moment() -> None:
    away = Away("a")
    for second in range(3):
        away.clock.now = second * LIFE_S
        for _ in range(5):
            await away.many(away.cards.card)
            assert await away.many(away.cards.starting) == {Starting(f"{second + 1}")}
    assert away.read == {"said a": 3, "starting a": 3}


async def test_the_store_is_asked_on_one_thread_of_its_own() -> None:
    away = Away(*"abcd")
    away.gone.set()
    await asyncio.gather(*map(away.cards.card, "abcd"), *map(away.cards.starting, "abcd"))
    assert away.read.total() == 8
    assert away.threads == {"control-store_0"}


async def test_where_the_store_fails_nothing_is_known_and_nobody_fails() -> None:
    away = Away("a")
    away.gone.set()
    del away.read
    assert await away.cards.card("a") is None
    assert await away.cards.starting("a") == Starting()
