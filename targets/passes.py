"""One pass of the target over a schedule and its proposals: in one go, or with early picks on its way."""

from __future__ import annotations

from collections.abc import Sequence as Run
from dataclasses import dataclass, field, replace
from itertools import accumulate

from model.sampling import NO_PICK
from protocol.draft import Refusal
from protocol.logit_rules import TokenLogprobs
from protocol.request import SamplingParams
from targets.model import ForwardRow, Halfway, TargetModel
from targets.proposals import Proposal, Proposals
from targets.refusals import comes_late
from targets.scheduler import Schedule
from targets.scoring import Picks, Scoring, scoring, telling
from targets.sequence import Sequence

GREEDY = SamplingParams(0)  # where no pick is wanted


@dataclass(slots=True)
class Pass:
    """One row for each decoding sequence, then one for each chunk; per wanted logit how and where it is picked.

    Nothing is picked at the places of a row whose tokens are given.
    """

    model: TargetModel
    rows: list[ForwardRow]
    sampling: list[SamplingParams]
    positions: list[int]
    half: Halfway | None = None
    logprobs: list[list[TokenLogprobs]] = field(default_factory=list)  # by row when it is finished, as far as asked for

    def places(self, sequence_id: int) -> range:
        """Which of the picks are those of a sequence."""
        return next(
            range(first, first + row.num_logits)
            for row, first in zip(self.rows, self._firsts, strict=False)
            if row.sequence_id == sequence_id
        )

    def early_picks(self, layer: int, places: Run[int]) -> list[tuple[int, ...]]:
        """Run to an inner layer, and what the target would pick so far at these places, best first."""
        self.half = self.model.run_to(self.rows, layer)
        return self.model.early_picks(self.half, places, self.sampling, self.positions)

    def finish(self) -> list[list[int]]:
        """What is left to run, and the picks by row; empty inside a prompt."""
        if self.half is not None:
            return self._sound(self.model.finish(self.half, self.sampling, self.positions))
        return self._sound(self.model.scored_picks(self.rows, self.sampling, self.positions)) if self.rows else []

    def _sound(self, picks: Picks) -> list[list[int]]:
        """Picks by row. A row that lacks one is run again without its draft, which may have spoiled all its places."""
        places = [range(at, at + row.num_logits) for row, at in zip(self.rows, self._firsts, strict=False)]
        rows = [
            [] if row.given else [picks.token_ids[place] for place in own]
            for row, own in zip(self.rows, places, strict=True)
        ]
        self.logprobs = [[picks.logprobs[place] for place in own if place in picks.logprobs] for own in places]
        if NO_PICK not in picks.token_ids:
            return rows
        for index, (row, at) in enumerate(zip(self.rows, self._firsts, strict=False)):
            if row.num_logits > 1 and NO_PICK in rows[index]:
                alone = replace(row, tokens=row.tokens[:1], num_logits=1)
                again = self.model.scored_picks([alone], [self.sampling[at]], [self.positions[at]])
                rows[index], self.logprobs[index] = again.token_ids, list(again.logprobs.values())
        return rows

    @property
    def _firsts(self) -> accumulate[int]:
        """The first pick of each row."""
        return accumulate((row.num_logits for row in self.rows), initial=0)


def gather(model: TargetModel, schedule: Schedule, proposals: Proposals) -> Pass:
    """What goes into the pass. All that was proposed is verified."""
    sequences = [*schedule.decoding, *(sequence for sequence, _ in schedule.chunks)]
    rows = [*map(_verify_row, schedule.decoding, proposals.rows), *(_chunk_row(*chunk) for chunk in schedule.chunks)]
    wanted = [
        (GREEDY if row.given else sequence.request.sampling, row.start + len(row.tokens) - row.num_logits + index + 1)
        for sequence, row in zip(sequences, rows, strict=True)
        for index in range(row.num_logits)
    ]
    return Pass(model, rows, [sampling for sampling, _ in wanted], [position for _, position in wanted])


def ending(schedule: Schedule) -> list[Sequence]:
    """Whose prompt ends with this pass, which gives them their first token."""
    return [sequence for sequence, size in schedule.chunks if sequence.gives_first(size)]


def _verify_row(sequence: Sequence, proposal: Proposal | None) -> ForwardRow:
    draft = proposal.tokens if proposal else ()
    tokens = [sequence.tokens[-1], *draft]
    return ForwardRow(sequence.id, sequence.computed, tokens, len(draft) + 1, *_asked(sequence, draft))


def _chunk_row(sequence: Sequence, size: int) -> ForwardRow:
    end = sequence.computed + size
    tokens = sequence.tokens[sequence.computed : end]
    if not sequence.gives_first(size):
        if not sequence.is_told:
            return ForwardRow(sequence.id, sequence.computed, tokens, 0)
        given, told = sequence.tokens[sequence.computed + 1 : end + 1], telling(sequence.request)
        return ForwardRow(sequence.id, sequence.computed, tokens, size, told, given=given)
    return ForwardRow(sequence.id, sequence.computed, tokens, 1, *_asked(sequence))


def _asked(sequence: Sequence, draft: Run[int] = ()) -> tuple[Scoring | None, Refusal | None]:
    """What its places ask of their logits, and of their picks."""
    constraint, request = sequence.constraint, sequence.request
    if constraint and comes_late(request.sampling):
        return scoring(request, sequence.tokens, draft), sequence.refusal
    return scoring(request, sequence.tokens, draft, constraint), None
