"""Drafting ahead: while a proposal is verified, the pool drafts the proposals behind its likely outcomes.

    proposals  the branch behind what was committed, or a fresh draft for rows that have none at hand
    during     the pool is told what is being verified; with early exits, half way what the target would pick so far

Mirror-SD (Apple, 2025), section 3, and the speculation cache of SSD. Every token of a proposal is verified, so nothing
that the pool says or fails to say changes a text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

from protocol.branch import AheadRequest, AheadRow, ExitHint, HintRow, MirrorClient
from protocol.errors import ConfigError
from protocol.plan import BatchView, DepthRule, Mode, Plan
from router.policy import granted
from targets.drafting import Drafting
from targets.passes import Pass, ending
from targets.pipeline import Order, Pipeline
from targets.proposals import Proposal, Proposals
from targets.scheduler import Schedule
from targets.sequence import Sequence as Decoding

MAX_BRANCHES = 64  # of a batch, which share the pool's passes
# Fresh drafts are waited for when fewer rows than this share of those that want one have a proposal at hand. By tokens
# per second: with two tokens accepted of a proposal and a wait of half a pass, waiting breaks even at half of the rows.
MIN_AT_HAND = 0.5
PATIENCE = 0.5  # of a pass: how long branches that are on their way are waited for


@dataclass(frozen=True, slots=True)
class AheadConfig:
    """How a target may draft ahead. modes: for the policy to choose from. fan_out: branches of a sequence at most.

    exit_layer: after how many of its layers the target says what it would pick so far; None: half of them.
    """

    modes: tuple[Mode, ...] = (Mode.SERIAL, Mode.AHEAD)
    fan_out: int = 8
    exit_layer: int | None = None

    def __post_init__(self) -> None:
        if self.fan_out < 1 or not self.modes:
            raise ConfigError(f"drafting ahead needs a fan_out of at least 1 and a mode or more; got {self}")


class Ahead:
    """The pool drafts while the target verifies."""

    def __init__(
        self,
        drafting: Drafting,
        client: MirrorClient,
        opening: Callable[[], DepthRule | None],
        exponent: Callable[[int], float],
        fan_out: int,
        clock: Callable[[], float],
    ) -> None:
        """client: that of `drafting`. opening: the depth for sequences whose prompts end. clock: seconds.

        exponent: of each exit; a token is right with the probability confidence ** exponent.
        """
        self._drafting, self._client, self._opening, self._clock = drafting, client, opening, clock
        self._exponent, self._fan_out = exponent, fan_out
        self._pipeline = Pipeline()
        self._told = 0  # the last round that was drafted ahead of
        self._told_s = 0.0
        self._longest = 0  # the longest draft that was planned lately

    def proposals(self, schedule: Schedule) -> Proposals:
        decoding, lengths, pipeline = schedule.decoding, schedule.plan.lengths, self._pipeline
        before = pipeline.num_branches, pipeline.num_tokens, pipeline.num_fenced
        in_time = self._told == self._drafting.round_id  # no round in another mode was played meanwhile
        pipeline.keep([sequence.id for sequence in decoding] if in_time else ())
        self._collect([sequence.id for sequence, length in zip(decoding, lengths, strict=True) if length])
        found = [pipeline.resolve(sequence.id, sequence.tokens) for sequence in decoding]
        at_hand = [own and self._drafting.read(own, length) for own, length in zip(found, lengths, strict=True)]
        asked = self._drafting.draft(decoding, replace(schedule.plan, lengths=missing(lengths, at_hand)))
        return replace(
            asked,
            rows=tuple(own or new for own, new in zip(at_hand, asked.rows, strict=True)),
            num_branches=pipeline.num_branches - before[0],
            num_branch_tokens=pipeline.num_tokens - before[1],
            num_fenced=pipeline.num_fenced - before[2],
        )

    def during(self, schedule: Schedule, proposals: Proposals, running: Pass) -> None:
        self.tell(schedule, proposals)

    def tell(self, schedule: Schedule, proposals: Proposals) -> AheadRequest | None:
        """What the pool may prepare, behind prompts that end too; the pipeline knows then what is in flight.

        No branch is longer than what is left of its sequence after the shortest outcome.
        """
        plan, prompts, drafting = schedule.plan, ending(schedule), self._drafting
        first = self._first_plan(prompts)
        self._longest = max(self._longest - 1, *plan.lengths, 0)
        for prompt in prompts:
            self._pipeline.resolve(prompt.id, prompt.tokens)
        sequences, lengths = [*schedule.decoding, *prompts], plan.lengths + first.lengths
        rules = [each.rule(index) for each in (plan, first) for index in range(len(each.lengths))]
        verified = [*(own.tokens if own else () for own in proposals.rows), *(() for _ in prompts)]
        depth, most = plan.depth or first.depth, max(1, min(self._fan_out, MAX_BRANCHES // max(len(sequences), 1)))
        rows = []
        for sequence, rule, planned, tokens in zip(sequences, rules, lengths, verified, strict=True):
            order, length = None, min(planned, sequence.remaining - 2)
            context = drafting.context(sequence, rule if rule != depth else None) if rule and length > 0 else None
            if rule and context:
                order = Order(rule, length, drafting.round_id)
                stop = plan.stop_probability if rule == depth else 0.0
                rows.append(AheadRow(context, tokens, length, most, stop, self._exponent(rule.exits[-1])))
            self._pipeline.begin(sequence.id, len(tokens), order)
        self._told, self._told_s = drafting.round_id, self._clock()
        if depth is None or not rows:
            return None
        request = AheadRequest(drafting.incarnation, drafting.round_id, depth, tuple(rows))
        self._client.ahead(request)
        return request

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

    def _first_plan(self, prompts: Sequence[Decoding]) -> Plan:
        """What is likely to be planned for these when their prompts have ended: the longest that others have lately."""
        opening = self._opening()
        view = BatchView(tuple(prompt.view(self._drafting.num_unseen(prompt), True) for prompt in prompts))
        return granted(view, Plan(opening, (self._longest if opening else 0,) * len(prompts)))


class EarlyExits:
    """Ahead, and half way through the pass the pool is told what the target would pick so far."""

    def __init__(self, ahead: Ahead, client: MirrorClient, exit_layer: int) -> None:
        self._ahead, self._client, self._exit_layer = ahead, client, exit_layer

    def proposals(self, schedule: Schedule) -> Proposals:
        return self._ahead.proposals(schedule)

    def during(self, schedule: Schedule, proposals: Proposals, running: Pass) -> None:
        request = self._ahead.tell(schedule, proposals)
        if request is None:
            return
        places = [running.places(row.context.sequence_id) for row in request.rows]
        picks = iter(running.early_picks(self._exit_layer, list(chain.from_iterable(places))))
        rows = tuple(
            HintRow(row.context.sequence_id, row.context.base_length, tuple(islice(picks, len(own))))
            for row, own in zip(request.rows, places, strict=True)
        )
        self._client.hint(ExitHint(request.incarnation, request.round_id, rows))


def missing(lengths: Sequence[int], at_hand: Sequence[Proposal | None]) -> tuple[int, ...]:
    """The lengths of the fresh drafts to wait for: of all rows that have nothing at hand, or of none."""
    num_wanted, num_hits = sum(length > 0 for length in lengths), sum(own is not None for own in at_hand)
    waits = num_hits < MIN_AT_HAND * num_wanted
    return tuple(length if waits and own is None else 0 for length, own in zip(lengths, at_hand, strict=True))
