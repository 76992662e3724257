"""The real step, put together as an engine does it, on a virtual clock; and what it says of its rounds, kept."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from protocol.branch import MirrorClient
from protocol.draft import DraftBlock
from protocol.outcome import RoundOutcome
from protocol.plan import BatchView, DepthRule, Mode, Plan
from protocol.record import Origin, RoundRecord, RowRecord
from router.modes import Mode as OldMode
from router.policy import Policy, drafted_lengths
from targets.drafting import Drafting
from targets.engine import EngineConfig
from targets.fence import Fences
from targets.guarded_client import GuardedMirrorClient
from targets.guarded_policy import GuardedPolicy
from targets.mirror import MirrorConfig, MirrorStepper
from targets.model import TargetModel
from targets.scheduler import Scheduler, SchedulerConfig
from targets.step import Stepper


def _record(outcome: RoundOutcome) -> RoundRecord:
    rules = outcome.plan.own or (None,) * len(outcome.rows)
    rows = tuple(
        RowRecord(
            row.id,
            row.num_verified,
            row.accepted,
            Origin.FULL if outcome.ahead else Origin.FRESH,
            (own or outcome.plan.depth) if length else None,
            length,
            row.exits,
            row.confidences,
            row.num_fed,
        )
        for row, own, length in zip(outcome.rows, rules, outcome.plan.lengths, strict=True)
    )
    return RoundRecord(
        0,
        outcome.plan,
        rows,
        outcome.context,
        0,
        answered=outcome.answered,
        wait_ms=outcome.wait_ms,
        drafted_s=1e-3 * outcome.draft_ms,
        verified_s=1e-3 * (outcome.draft_ms + outcome.verify_ms),
    )


_OLD = {Mode.SERIAL: OldMode.SERIAL, Mode.AHEAD: OldMode.MIRROR, Mode.AHEAD_EARLY_EXIT: OldMode.HINTED}


def modes_of(mirror: Any) -> tuple[Mode, ...]:
    """That a config allows."""
    if mirror is None:
        return (Mode.SERIAL,)
    return tuple(new for new, old in _OLD.items() if old in mirror.modes)


class Aimless:
    """What a policy that learns nothing does besides planning."""

    def planned(self, view: BatchView, plan: Plan, stop: float, rng: random.Random) -> Plan:
        """With what every branch of this code names in its own way."""
        return replace(plan, floor=stop)

    def prune(self, plan: Plan, drafts: Sequence[DraftBlock | None]) -> Sequence[int]:
        return drafted_lengths(drafts)

    def observe(self, record: RoundOutcome) -> None:
        return None


class Recorder:
    """A policy that keeps what it is told."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.records: list[RoundRecord] = []

    def opening(self) -> DepthRule | None:
        return self.policy.opening()

    def plan(self, view: BatchView) -> Plan:
        return self.policy.plan(view)

    def prune(self, plan: Plan, drafts: Sequence[DraftBlock | None]) -> Sequence[int]:
        return self.policy.prune(plan, drafts)

    def observe(self, outcome: RoundOutcome) -> None:
        self.records.append(_record(outcome))
        self.policy.observe(outcome)


def make_stepper(
    model: TargetModel,
    policy: Policy,
    client: MirrorClient | None,
    config: EngineConfig,
    modes: tuple[Mode, ...],
    clock: Callable[[], float],
) -> tuple[Stepper, list[RoundRecord]]:
    """records: filled with what the rounds make."""
    recorder = Recorder(policy)
    count = [0]
    fences = Fences(lambda: count[0])
    guarded = GuardedPolicy(recorder, fences.around("policy"))
    scheduler = Scheduler(model.ledger, SchedulerConfig(config.max_batch, config.prefill_chunk))
    if client is None:
        return Stepper(model, guarded, scheduler, None, clock), recorder.records
    own = GuardedMirrorClient(client, fences.around("way to the draft pool"))
    drafting = Drafting(own, config.incarnation, model.decoder.config.vocab_size)
    if modes == (Mode.SERIAL,):
        return Stepper(model, guarded, scheduler, drafting, clock), recorder.records
    mirror = MirrorConfig(modes=tuple(_OLD[mode] for mode in modes))
    fence = fences.around("record of rounds")
    return MirrorStepper(model, guarded, scheduler, drafting, own, mirror, fence, clock), recorder.records
