"""A way to the pool that may fail or lie: what it raises stays here, and so does what is no answer at all.

Drafts that are wrong, late, doubled or foreign are no failures: verification, base lengths and hashes see to those. A
failure is what no drafter can have meant, such as a negative token or a confidence that is not a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from protocol.branch import AheadRequest, Branch, ExitHint, MirrorClient
from protocol.draft import DraftBlock, DraftClient, DraftReply, DraftRequest
from targets.fence import Fence

CERTAIN = 1.001  # a confidence is computed in float32


class Nonsense(Exception):
    """The pool sent what no drafter can have meant."""


class GuardedDraftClient:
    """A DraftClient that raises nothing and answers with drafts or not at all, around one that promises neither."""

    def __init__(self, client: DraftClient, fence: Fence) -> None:
        self._client, self._fence = client, fence

    def open(self, request: DraftRequest) -> None:
        if self._fence.open:
            with self._fence:
                self._client.open(request)

    def draft(self, request: DraftRequest) -> DraftReply | None:
        reply = None
        if self._fence.open:
            with self._fence:
                reply = sound_reply(self._client.draft(request))
        return reply

    def close(self, sequence_ids: Sequence[int]) -> None:
        """Also while the pool is not asked, so that nothing is left there."""
        with self._fence:
            self._client.close(sequence_ids)


class GuardedMirrorClient(GuardedDraftClient):
    """The same for a MirrorClient."""

    def __init__(self, client: MirrorClient, fence: Fence) -> None:
        super().__init__(client, fence)
        self._mirror = client

    def ask(self, request: DraftRequest) -> None:
        if self._fence.open:
            with self._fence:
                self._mirror.ask(request)

    def answer(self) -> DraftReply | None:
        reply = None
        if self._fence.open:
            with self._fence:
                reply = sound_reply(self._mirror.answer())
        return reply

    def ahead(self, request: AheadRequest) -> None:
        if self._fence.open:
            with self._fence:
                self._mirror.ahead(request)

    def hint(self, hint: ExitHint) -> None:
        if self._fence.open:
            with self._fence:
                self._mirror.hint(hint)

    def branches(self, timeout_s: float = 0.0) -> Sequence[Branch]:
        came: Sequence[Branch] = ()
        if self._fence.open:
            with self._fence:
                came = sound_branches(self._mirror.branches(timeout_s))
        return came


def sound_reply(reply: DraftReply | None) -> DraftReply | None:
    """The reply. Raises Nonsense."""
    if reply is not None:
        if not 0 <= reply.wait_ms < float("inf"):
            raise Nonsense(f"a draft that waited for {reply.wait_ms} ms")
        for block in reply.blocks:
            _check_draft(block)
    return reply


def sound_branches(branches: Sequence[Branch]) -> Sequence[Branch]:
    """The branches. Raises Nonsense."""
    for branch in branches:
        _check_draft(branch)
    return branches


def _check_draft(draft: DraftBlock | Branch) -> None:
    if not len(draft.tokens) == len(draft.exits) == len(draft.confidences):
        numbers = f"{len(draft.tokens)} tokens, {len(draft.exits)} exits, {len(draft.confidences)} confidences"
        raise Nonsense(f"a draft of {numbers}")
    if draft.tokens and min(draft.tokens) < 0:
        raise Nonsense(f"a draft with token {min(draft.tokens)}")
    _check_confidences(draft.confidences)


def _check_confidences(confidences: Sequence[float]) -> None:
    if confidences and not (isfinite(sum(confidences)) and min(confidences) >= 0 and max(confidences) <= CERTAIN):
        raise Nonsense(f"confidences {confidences}")
