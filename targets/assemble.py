"""A target's loop from its parts, with a fence around every part that only advises: policy, pool, record of rounds."""

from __future__ import annotations

import time

from protocol.branch import AheadClient
from protocol.draft import DraftClient
from protocol.errors import ConfigError
from protocol.plan import Mode
from router.policy import Policy
from targets.ahead import Ahead
from targets.drafting import Drafting
from targets.guarded import GuardedAheadClient, GuardedDraftClient, GuardedPolicy
from targets.model import TargetModel
from targets.rounds import Rounds
from targets.scheduler import Scheduler, SchedulerConfig
from targets.step import Clock, InTurn, Source, Stepper


def make_stepper(
    model: TargetModel,
    policy: Policy,
    client: DraftClient | None,
    config: SchedulerConfig,
    incarnation: str,
    ahead: bool = False,
    clock: Clock = time.perf_counter,
) -> Stepper:
    """client: the way to the pool; None: plain decoding. ahead: drafts may come ahead, over a client that can.

    Raises ConfigError when they cannot.
    """
    rounds, scheduler = Rounds(), Scheduler(model.ledger, config)
    guarded = GuardedPolicy(policy, rounds.fence("policy"))
    if client is None:
        return Stepper(model, guarded, scheduler, rounds=rounds, clock=clock)
    fence, vocab_size = rounds.fence("way to the draft pool"), model.decoder.config.vocab_size
    if not ahead:
        drafting = Drafting(GuardedDraftClient(client, fence), incarnation, vocab_size)
        return Stepper(model, guarded, scheduler, drafting, rounds=rounds, clock=clock)
    if not isinstance(client, AheadClient):
        raise ConfigError(f"{type(client).__name__} does not draft ahead; leave ahead out")
    way = GuardedAheadClient(client, fence)
    drafting = Drafting(way, incarnation, vocab_size, reads_meanwhile=True)
    whole = Ahead(drafting, way, guarded.opening, clock)
    sources: dict[Mode, Source] = {Mode.IN_TURN: InTurn(drafting), Mode.AHEAD: whole}
    return Stepper(model, guarded, scheduler, drafting, sources, rounds, clock)
