"""Engines that draft ahead, over a real pool in process, and a policy that knows no consistency."""

from __future__ import annotations

import random
from collections.abc import Sequence

from drafters.client import LocalDraftClient
from drafters.limits import PoolLimits
from drafters.nested import NestedDrafter
from drafters.worker import DraftWorker
from model.decoder import Decoder
from protocol.branch import MirrorClient
from protocol.draft import DraftBlock
from protocol.plan import BatchView, DepthRule, Plan
from router.policy import Policy, Steadfast, drafted_lengths
from targets.engine import Engine, EngineConfig
from targets.mirror import MirrorConfig
from tests.targets.conftest import LoadTarget

EXITS = (2, 3, 4)
DEEP, SHALLOW = DepthRule((4,)), DepthRule((3,))
RULES = (DEEP, SHALLOW, DepthRule((2, 4), (0.6,)), DepthRule((2, 3, 4), (0.5, 0.5)))


class Connect:
    """Draft replicas over one decoder, a new one at each call."""

    def __init__(self, decoder: Decoder, num_pages: int = 256) -> None:
        self.decoder, self.num_pages = decoder, num_pages

    def __call__(self) -> LocalDraftClient:
        self.worker = DraftWorker(NestedDrafter(self.decoder, EXITS, self.num_pages, 8), PoolLimits(max_rows=16))
        return LocalDraftClient(self.worker, "engine")

    def is_empty(self) -> bool:
        self.worker.check()
        stats = self.worker.stats()
        return (stats.num_sequences, stats.num_free_pages) == (0, stats.num_pages)


class Whimsical(Steadfast):
    """Another rule for every round, another length for every sequence; sometimes off, and drafts cut anywhere."""

    def __init__(self, seed: int, longest: int = 6) -> None:
        self._rng, self._longest = random.Random(seed), longest

    def opening(self) -> DepthRule | None:
        return self._rng.choice([*RULES, None])

    def plan(self, view: BatchView) -> Plan:
        rng = self._rng
        longest = 0 if rng.random() < 0.1 else self._longest
        lengths = tuple(max(0, min(rng.randint(0, longest), s.remaining - 1)) for s in view.sequences)
        probes = tuple(index for index in range(len(lengths)) if rng.random() < 0.05)
        depth = rng.choice(RULES) if any(lengths) or probes else None
        return Plan(depth, lengths, floor=rng.choice([0.0, 0.0, 0.2]), probes=probes)

    def prune(self, plan: Plan, drafts: Sequence[DraftBlock | None]) -> Sequence[int]:
        return [
            length if self._rng.random() < 0.7 else self._rng.randint(0, length) for length in drafted_lengths(drafts)
        ]


def engine_of(
    load: LoadTarget, client: MirrorClient, policy: Policy, mirror: MirrorConfig | None = None, **config: int
) -> Engine:
    target = load(**{name: config.pop(name) for name in ("num_positions", "page_size") if name in config})
    return Engine(target, policy, client, EngineConfig(**config), mirror or MirrorConfig())


def has_given_back(engine: Engine) -> bool:
    ledger = engine._model.ledger
    ledger.check()
    return ledger.num_free == ledger.num_pages
