"""Drafting ahead: while a proposal is verified, the pool drafts the one behind it.

    proposals  the branch behind what was committed, or a fresh draft for rows that have none at hand
    during     the pool is told what is being verified

Mirror-SD (Apple, 2025), section 3, and the speculation cache of SSD.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from protocol.branch import AheadClient, AheadRequest, AheadRow
from targets.drafting import Drafting
from targets.passes import ending
from targets.pipeline import Order, Pipeline
from targets.proposals import Proposal, Proposals
from targets.scheduler import Schedule

# Fresh drafts are waited for when fewer rows than this share of those that want one have a proposal at hand. By tokens
# per second: with two tokens accepted of a proposal and a wait of half a pass, waiting breaks even at half of the rows.
MIN_AT_HAND = 0.5
PATIENCE = 0.5  # of a pass: how long branches that are on their way are waited for


class Ahead:
    """The pool drafts while the target verifies."""

    def __init__(
        self,
        drafting: Drafting,
        client: AheadClient,
        opening: Callable[[], int | None],
        clock: Callable[[], float],
    ) -> None:
        """client: that of `drafting`. opening: the depth for prompts that end."""
        self._drafting, self._client, self._opening, self._clock = drafting, client, opening, clock
        self._pipeline = Pipeline()
        self._told = 0  # the last round that was drafted ahead of
        self._told_s = 0.0
        self._longest = 0  # draft that was planned lately, for prompts that end

    def proposals(self, schedule: Schedule) -> Proposals:
        decoding, lengths, pipeline = schedule.decoding, schedule.plan.lengths, self._pipeline
        in_time = self._told == self._drafting.round_id  # no round in another mode was played meanwhile
        pipeline.keep([sequence.id for sequence in decoding] if in_time else ())
        self._collect([sequence.id for sequence, length in zip(decoding, lengths, strict=True) if length])
        found = [pipeline.resolve(sequence.id, sequence.tokens) for sequence in decoding]
        at_hand = [own and self._drafting.read(own, length) for own, length in zip(found, lengths, strict=True)]
        for sequence, own in zip(decoding, found, strict=True):
            if own is not None:
                self._drafting.heard(sequence)
        alone = [pipeline.starves(sequence.id) or self._drafting.is_unknown(sequence) for sequence in decoding]
        asked = self._drafting.draft(decoding, replace(schedule.plan, lengths=missing(lengths, at_hand, alone)))
        return replace(asked, rows=tuple(own or new for own, new in zip(at_hand, asked.rows, strict=True)))

    def during(self, schedule: Schedule, proposals: Proposals) -> None:
        """What the pool may prepare, the first proposals of prompts that end too; the pipeline knows what is in flight.

        No branch is longer than what is left of its sequence behind it.
        """
        plan, drafting, opening = schedule.plan, self._drafting, self._opening()
        wanted = [
            (sequence, plan.depth_of(index), plan.lengths[index], own.tokens if own else ())
            for index, (sequence, own) in enumerate(zip(schedule.decoding, proposals.rows, strict=True))
        ]
        for prompt in ending(schedule):
            self._pipeline.resolve(prompt.id, prompt.tokens)
            wanted.append((prompt, opening, 0 if prompt.request.speculation else self._longest, ()))
        self._longest = max(self._longest - 1, *plan.lengths, 0)
        depth, rows = plan.depth or opening, []
        for sequence, own_depth, planned, tokens in wanted:
            order, length = None, min(planned, sequence.remaining - len(tokens) - 2)
            other = own_depth if own_depth != depth else None
            context = drafting.context(sequence, other) if own_depth and length > 0 else None
            if own_depth and context:
                order = Order(own_depth, length, drafting.round_id)
                rows.append(AheadRow(context, tokens, length, 0.0 if other else plan.stop_probability))
            self._pipeline.begin(sequence.id, len(tokens), order)
        self._told, self._told_s = drafting.round_id, self._clock()
        if depth is not None and rows:
            self._client.ahead(AheadRequest(drafting.incarnation, drafting.round_id, depth, tuple(rows)))

    def _collect(self, wanting: Sequence[int]) -> None:
        """The branches that came, and those on their way for these sequences, for a part of the time of a pass."""
        now = self._clock()
        until = now + PATIENCE * (now - self._told_s)
        self._pipeline.take(self._client.branches())
        while (
            any(map(self._pipeline.awaits, wanting))
            and (left := until - self._clock()) > 0
            and (came := self._client.branches(left))
        ):
            self._pipeline.take(came)


def missing(lengths: Sequence[int], at_hand: Sequence[Proposal | None], alone: Sequence[bool]) -> tuple[int, ...]:
    """The lengths of the fresh drafts to wait for: of all rows that have nothing at hand, or only of those for which
    nothing will come otherwise. alone: which those are.
    """
    num_wanted, num_hits = sum(length > 0 for length in lengths), sum(own is not None for own in at_hand)
    waits = num_hits < MIN_AT_HAND * num_wanted
    rows = zip(lengths, at_hand, alone, strict=True)
    return tuple(length if (waits or starves) and own is None else 0 for length, own, starves in rows)
