"""Five hundred requests, and nothing that advises the engine is to be trusted: no text changes and nobody fails."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from bench.exactness.faulty import FaultyClient
from bench.exactness.random_policy import RandomPolicy
from model.decoder import Decoder
from protocol.branch import AheadClient, AheadRequest, Branch
from protocol.draft import DraftReply, DraftRequest
from protocol.plan import BatchView, Plan
from protocol.record import RoundRecord
from protocol.request import FinishReason
from targets import fence
from targets.engine import Engine, EngineConfig
from targets.rounds import Rounds
from tests.model.families import VOCAB
from tests.reference.engine import plain_texts, random_requests, run_all
from tests.targets.ahead import EXITS, Connect, has_given_back
from tests.targets.conftest import LoadTarget

WAYS = {"in turn": False, "in turn or ahead": True}
NAN = float("nan")


class Fault(Exception):
    pass


class Unsound:
    """Chances of raising, and of answering with what fits nothing. Counts what it did by name: everything at its third
    chance at the latest.
    """

    def __init__(self, seed: int, chance: float) -> None:
        self.rng, self._chance = random.Random(seed), chance
        self.did: Counter[str] = Counter()
        self._chances: Counter[str] = Counter()

    def happens(self, what: str) -> bool:
        self._chances[what] += 1
        happens = self.rng.random() < self._chance or (not self.did[what] and self._chances[what] == 3)
        self.did[what] += happens
        return happens

    def maybe_raise(self, where: str) -> None:
        if self.happens(where):
            raise Fault(where)


class UnsoundPolicy(Unsound):
    def __init__(self, seed: int, chance: float) -> None:
        super().__init__(seed, chance)
        self._policy = RandomPolicy(EXITS, 5, self.rng)

    def opening(self) -> int | None:
        self.maybe_raise("opening")
        return self._policy.opening()

    def plan(self, view: BatchView) -> Plan:
        self.maybe_raise("plan")
        plan = self._policy.plan(view)
        if self.happens("wrong plan"):
            depth = 2
            wrong = [
                replace(plan, lengths=(*plan.lengths, 0)),
                replace(plan, depth=depth, lengths=(99,) * len(plan.lengths)),
                replace(plan, stop_probability=NAN),
                replace(plan, own=(depth,) * (len(plan.lengths) + 1)),
                replace(plan, mode="sideways"),  # type: ignore[arg-type]
            ]
            return self.rng.choice(wrong)
        return plan

    def observe(self, record: RoundRecord) -> None:
        self.maybe_raise("observe")


class LyingPool(Unsound):
    """A faulty link to a real pool, which moreover raises, and says what no pool can mean or of whom nobody asked."""

    def __init__(self, client: AheadClient, seed: int, chance: float) -> None:
        super().__init__(seed, chance)
        self._client = client

    def open(self, request: DraftRequest) -> None:
        self.maybe_raise("open")
        self._client.open(request)

    def draft(self, request: DraftRequest) -> DraftReply | None:
        self.maybe_raise("draft")
        reply = self._client.draft(request)
        if reply is None:
            return None
        blocks = [self._bent(block) for block in reply.blocks]
        if self.happens("rows"):
            blocks = [*blocks[1:], *blocks[:1], *blocks, replace(blocks[0], sequence_id=self.rng.randrange(64))]
        return replace(reply, blocks=tuple(blocks), wait_ms=NAN if self.happens("wait") else reply.wait_ms)

    def ahead(self, request: AheadRequest) -> None:
        self.maybe_raise("ahead")
        self._client.ahead(request)

    def branches(self, timeout_s: float = 0.0) -> Sequence[Branch]:
        self.maybe_raise("branches")
        return [self._bent(branch) for branch in self._client.branches(timeout_s)]

    def close(self, sequence_ids: Sequence[int]) -> None:
        self._client.close(sequence_ids)
        self.maybe_raise("close")

    def _bent(self, draft: Any) -> Any:
        rng, count = self.rng, len(draft.tokens)
        if self.happens("tokens"):
            draft = replace(
                draft, tokens=tuple(rng.choice((rng.randrange(VOCAB), VOCAB, 1 << 40)) for _ in draft.tokens)
            )
        if self.happens("negative"):
            draft = replace(draft, tokens=(-1,) * count)
        if self.happens("confidences"):
            draft = replace(draft, confidences=tuple(rng.choice((NAN, -3.0, 7.0, 0.0)) for _ in draft.confidences))
        if self.happens("too few"):
            draft = replace(draft, confidences=draft.confidences[1:])
        if self.happens("too many"):
            draft = replace(draft, tokens=(7,) * 40, confidences=(0.5,) * 40)
        if self.happens("another base"):
            draft = replace(draft, base_length=draft.base_length + rng.choice((-1, 1)))
        return draft


@pytest.mark.parametrize("ahead", WAYS.values(), ids=WAYS)
def test_no_request_fails_and_no_token_changes_whatever_policy_pool_and_records_do(
    load: LoadTarget, drafter: Decoder, ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come back sooner than in service, so that there is more of them to suffer."""
    monkeypatch.setattr(fence, "FIRST", 2)
    monkeypatch.setattr(fence, "LONGEST", 8)
    requests = random_requests(7, 500 // len(WAYS) + 1, VOCAB, max_tokens=16)
    texts = plain_texts(load(), requests)
    policy, torn = UnsoundPolicy(1, chance=0.03), Unsound(4, chance=0.05)
    pool = LyingPool(FaultyClient(Connect(drafter), seed=2), seed=3, chance=0.01)
    engine = Engine(load(), policy, pool, EngineConfig(max_batch=8, max_queue=500), ahead)
    learn = Rounds._calibrate

    def torn_calibration(rounds: Rounds, record: RoundRecord) -> None:
        torn.maybe_raise("record")
        learn(rounds, record)

    monkeypatch.setattr(Rounds, "_calibrate", torn_calibration)
    result = run_all(engine, requests)
    assert result.tokens == texts
    assert not {FinishReason.ERROR, FinishReason.ABORT} & set(result.reasons.values())
    assert has_given_back(engine)
    assert all(policy.did[name] for name in ("opening", "plan", "wrong plan", "observe"))
    assert sum(pool.did.values()) > 20
    assert engine.stats().num_failures > 20
    assert engine.stats().num_accepted == sum(stats.accepted for stats in result.stats.values()) > 50
