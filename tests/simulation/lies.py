"""What a draft replica or a target says that none means, and how a replica dies."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any, TypeVar

from protocol.branch import Branch
from protocol.draft import DraftBlock, DraftReply
from protocol.wire import PoolMessage
from simulation.pool import Replica
from simulation.simulate import Simulation
from tests.fuzz.messages import Messages

REVIVAL_S = 0.5  # after which another replica takes the place of one that died
Draft = TypeVar("Draft", DraftBlock, Branch)


def liar(share: float) -> Callable[[PoolMessage, random.Random], PoolMessage]:
    """So many of its messages are lies."""
    return lambda message, rng: lie(message, rng) if rng.random() < share else message


def plan_deaths(simulation: Simulation, rng: random.Random, rate: float) -> None:
    """rate: of deaths, in a second."""

    def die() -> None:
        if living := simulation.network.living:
            victim = rng.choice(living)
            simulation.network.kill(victim)
            simulation.loop.call_in(REVIVAL_S, lambda: simulation.add_replica(f"{victim.name}'"))
        plan_deaths(simulation, rng, rate)

    if rate:
        simulation.loop.call_in(rng.expovariate(rate), die)


def plan_hostility(simulation: Simulation, seed: int, every_s: float) -> None:
    """A target sends every replica what none means, as often, until the others are served. What is refused ends its
    link, and it comes again under another name.
    """
    messages, names = Messages(seed), count(1)

    def send(replica: Replica, owner: str) -> None:
        def begin_again() -> None:
            nonlocal owner
            replica.drop(owner)
            owner = f"hostile#{next(names)}"

        if all(served.reason for target in simulation.targets for served in target.served):
            replica.drop(owner)
        elif replica.open:
            replica.receive(owner, messages.to_pool(), lambda _: None, begin_again)
            simulation.loop.call_in(every_s, lambda: send(replica, owner))

    for replica in simulation.network.living:
        simulation.loop.call_in(every_s, lambda replica=replica: send(replica, "hostile#0"))


def lie(message: PoolMessage, rng: random.Random) -> PoolMessage:
    """One of the things that no drafter means."""
    if isinstance(message, DraftReply):
        if not message.blocks or rng.random() < 0.2:
            return replace(message, round_id=rng.randrange(99), wait_ms=rng.choice((0.0, float("nan"), 1e12)))
        return replace(message, blocks=_twisted(message.blocks, rng))
    return replace(message, branches=_twisted(message.branches, rng), round_id=rng.randrange(99))


def _twisted(drafts: tuple[Draft, ...], rng: random.Random) -> tuple[Draft, ...]:
    """With one of them changed."""
    if not drafts:
        return drafts
    changed = list(drafts)
    draft = rng.choice(drafts)
    size = len(draft.tokens)
    changes: list[dict[str, Any]] = [
        {"tokens": tuple(rng.randrange(1 << 32) for _ in range(size))},
        {"tokens": tuple(rng.randrange(64) for _ in range(size))},
        {"tokens": draft.tokens * 2},
        {"confidences": (float("nan"),) * size},
        {"base_length": draft.base_length + rng.randrange(3)},
        {"sequence_id": rng.randrange(8)},
    ]
    changed[drafts.index(draft)] = replace(draft, **rng.choice(changes))
    return tuple(changed)
