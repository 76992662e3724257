"""Engines that draft ahead, over a real pool in process, and a policy that knows no consistency."""

from __future__ import annotations

import random
from collections.abc import Sequence

from drafters.client import LocalDraftClient
from drafters.limits import PoolLimits
from drafters.nested import NestedDrafter
from drafters.worker import DraftWorker
from model.decoder import Decoder
from protocol.branch import AheadClient
from protocol.plan import BatchView, Mode, Plan
from protocol.request import GenerateRequest, SamplingParams, StopRules
from router.policy import Policy, StaticPolicy
from targets.engine import Engine, EngineConfig
from tests.targets.conftest import LoadTarget

EXITS = (2, 3, 4)
DEEP, SHALLOW = 4, 3


class Connect:
    """Draft replicas over one decoder, a new one at each call."""

    def __init__(self, decoder: Decoder, num_pages: int = 256) -> None:
        self.decoder, self.num_pages = decoder, num_pages
        self()

    def __call__(self) -> LocalDraftClient:
        self.worker = DraftWorker(NestedDrafter(self.decoder, EXITS, self.num_pages, 8), PoolLimits(max_rows=16))
        return LocalDraftClient(self.worker, "engine")

    def is_empty(self) -> bool:
        self.worker.check()
        stats = self.worker.stats()
        return (stats.num_sequences, stats.num_free_pages) == (0, stats.num_pages)


class Whimsical(StaticPolicy):
    """Another depth and mode for every round, another length for every sequence; sometimes off."""

    def __init__(self, seed: int, longest: int = 6, modes: Sequence[Mode] = ()) -> None:
        self._rng, self._longest, self._modes = random.Random(seed), longest, modes

    def opening(self) -> int | None:
        return self._rng.choice([*EXITS, None])

    def plan(self, view: BatchView) -> Plan:
        rng = self._rng
        longest = 0 if rng.random() < 0.1 else self._longest
        lengths = tuple(max(0, min(rng.randint(0, longest), s.remaining - 1)) for s in view.sequences)
        depth = rng.choice(EXITS) if any(lengths) else None
        stop = rng.choice([0.0, 0.0, 0.2])
        return Plan(depth, lengths, stop_probability=stop, mode=rng.choice(self._modes or view.modes))


def engine_of(load: LoadTarget, client: AheadClient, policy: Policy, **config: int) -> Engine:
    target = load(**{name: config.pop(name) for name in ("num_positions", "page_size") if name in config})
    return Engine(target, policy, client, EngineConfig(**config), ahead=True)


def has_given_back(engine: Engine) -> bool:
    ledger = engine._model.ledger
    ledger.check()
    return ledger.num_free == ledger.num_pages


def one_request(seed: int = 3, last: int = 7, num_tokens: int = 61) -> GenerateRequest:
    return GenerateRequest(str(seed), (5, 6, last), SamplingParams(temperature=1.0, seed=seed), StopRules(num_tokens))
