"""One pass of the target over a schedule and its proposals."""

from __future__ import annotations

from collections.abc import Sequence as Run
from dataclasses import replace

from model.sampling import NO_PICK
from protocol.draft import Refusal
from protocol.logit_rules import TokenLogprobs
from protocol.request import GREEDY, SamplingParams
from targets.model import ForwardRow, TargetModel
from targets.proposals import Proposal, Proposals
from targets.refusals import comes_late
from targets.scheduler import Schedule
from targets.scoring import Picks, Scoring, scoring, telling
from targets.sequence import Sequence


def run_pass(
    model: TargetModel, schedule: Schedule, proposals: Proposals
) -> tuple[list[list[int]], list[list[TokenLogprobs]]]:
    """By row, one for each decoding sequence, then one for each chunk: the picks, and the logprobs that were asked for.
    All that was proposed is verified; inside a prompt nothing is picked.
    """
    rows, sampling, positions = _gathered(schedule, proposals)
    picks, logprobs, first = list[list[int]](), list[list[TokenLogprobs]](), 0
    found = model.scored_picks(rows, sampling, positions) if rows else Picks([])
    for row in rows:
        places = range(first, first + row.num_logits)
        own = Picks([] if row.given else found.token_ids[first : places.stop], found.logprobs)
        if row.num_logits > 1 and NO_PICK in own.token_ids:  # its draft may have spoiled all its places
            alone, places = replace(row, tokens=row.tokens[:1], num_logits=1), range(1)
            own = model.scored_picks([alone], [sampling[first]], [positions[first]])
        picks.append(own.token_ids)
        logprobs.append([own.logprobs[place] for place in places if place in own.logprobs])
        first += row.num_logits
    return picks, logprobs


def ending(schedule: Schedule) -> list[Sequence]:
    """Whose prompt ends with this pass, which gives them their first token."""
    return [sequence for sequence, size in schedule.chunks if sequence.gives_first(size)]


def _gathered(schedule: Schedule, proposals: Proposals) -> tuple[list[ForwardRow], list[SamplingParams], list[int]]:
    """What goes into a pass: its rows, and per wanted logit how and where it is picked. Given tokens want no pick."""
    sequences = [*schedule.decoding, *(sequence for sequence, _ in schedule.chunks)]
    rows = [*map(_verify_row, schedule.decoding, proposals.rows), *(_chunk_row(*chunk) for chunk in schedule.chunks)]
    wanted = [
        (GREEDY if row.given else sequence.request.sampling, row.start + len(row.tokens) - row.num_logits + index + 1)
        for sequence, row in zip(sequences, rows, strict=True)
        for index in range(row.num_logits)
    ]
    return rows, [sampling for sampling, _ in wanted], [position for _, position in wanted]


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
    """What the sequence asks of the logits at its places, and how its picks are checked."""
    constraint, request = sequence.constraint, sequence.request
    if constraint and comes_late(request.sampling):
        return scoring(request, sequence.tokens, draft), sequence.refusal
    return scoring(request, sequence.tokens, draft, constraint), None
