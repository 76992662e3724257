"""Wrappers for a policy and a pool client that may fail: exceptions and malformed answers stop here."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite
from operator import index
from typing import TypeVar

from protocol.branch import AheadClient, AheadRequest, Branch
from protocol.draft import DraftBlock, DraftClient, DraftReply, DraftRequest
from protocol.plan import BatchView, Mode, Plan
from protocol.record import RoundRecord
from router.policy import Off, Policy
from targets.fence import Fence

Drafts = TypeVar("Drafts", bound=Sequence[DraftBlock] | Sequence[Branch])

CERTAIN = 1.001  # a confidence is computed in float32


class Nonsense(ValueError):
    """An answer that cannot belong to the request. Wrong or late drafts are no errors; verification handles them."""


class GuardedPolicy:
    """A Policy that raises nothing and whose plans fit the batch; where it fails, a round is decoded plainly."""

    def __init__(self, policy: Policy, fence: Fence) -> None:
        self._policy, self._fence = policy, fence

    def opening(self) -> int | None:
        return self._fence.attempt(self._policy.opening, None)

    def plan(self, view: BatchView) -> Plan:
        plan = self._fence.attempt(lambda: fitting(self._policy.plan(view), view), None)
        return Off().plan(view) if plan is None else plan

    def observe(self, record: RoundRecord) -> None:
        self._fence.attempt(lambda: self._policy.observe(record), None)


class GuardedDraftClient:
    """A DraftClient that raises nothing and answers with well-formed drafts or none, around one that may not."""

    def __init__(self, client: DraftClient, fence: Fence) -> None:
        self._client, self._fence = client, fence

    def open(self, request: DraftRequest) -> None:
        self._fence.attempt(lambda: self._client.open(request), None)

    def draft(self, request: DraftRequest) -> DraftReply | None:
        return self._fence.attempt(lambda: _sound_reply(self._client.draft(request)), None)

    def close(self, sequence_ids: Sequence[int]) -> None:
        """Also while the fence is closed, so that nothing is left at the pool."""
        self._fence.attempt(lambda: self._client.close(sequence_ids), None, always=True)


class GuardedAheadClient(GuardedDraftClient):
    """The same for an AheadClient."""

    def __init__(self, client: AheadClient, fence: Fence) -> None:
        super().__init__(client, fence)
        self._ahead = client

    def ahead(self, request: AheadRequest) -> None:
        self._fence.attempt(lambda: self._ahead.ahead(request), None)

    def branches(self, timeout_s: float = 0.0) -> Sequence[Branch]:
        return self._fence.attempt(lambda: sound(self._ahead.branches(timeout_s)), ())


def fitting(plan: Plan, view: BatchView) -> Plan:
    """The plan. Raises Nonsense or TypeError if it does not fit these sequences."""
    room = [max(sequence.remaining - 1, 0) for sequence in view.sequences]
    if len(plan.lengths) != len(room) or any(not 0 <= index(n) <= m for n, m in zip(plan.lengths, room, strict=True)):
        raise Nonsense(f"lengths {plan.lengths} are not between 0 and {room}")
    if plan.own and len(plan.own) != len(room):
        raise Nonsense(f"{len(room)} rows and the depths of {len(plan.own)}")
    if not 0.0 <= plan.stop_probability <= 1.0:
        raise Nonsense(f"stop_probability {plan.stop_probability} is no probability")
    if plan.mode not in (Mode.IN_TURN, *view.modes):
        raise Nonsense(f"mode {plan.mode} is none of {view.modes}")
    return plan


def sound(drafts: Drafts) -> Drafts:
    """The drafts. Raises Nonsense."""
    for draft in drafts:
        tokens, sure = draft.tokens, draft.confidences
        if len(tokens) != len(sure):
            raise Nonsense(f"a draft of {len(tokens)} tokens and {len(sure)} confidences")
        if tokens and min(tokens) < 0:
            raise Nonsense(f"a draft with token {min(tokens)}")
        if sure and not (isfinite(sum(sure)) and min(sure) >= 0 and max(sure) <= CERTAIN):
            raise Nonsense(f"confidences {sure}")
    return drafts


def _sound_reply(reply: DraftReply | None) -> DraftReply | None:
    if reply is not None and not 0 <= reply.wait_ms < inf:
        raise Nonsense(f"a draft that waited for {reply.wait_ms} ms")
    sound(reply.blocks if reply is not None else ())
    return reply
