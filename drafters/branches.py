"""Drafting ahead for the sequences of the pool: which branches are rolled out, and when.

    take     a window is being verified: draft on behind it, and in the same pass behind the best outcomes within it
    lead     is there: roll out what is missing of the `fan_out` best outcomes, in one batch
    hint     the target's early picks: the best outcomes are others now; what was begun for one that is not among them
             ends, those that are missing begin
    more     tokens of a branch are there: handed over, for half a window in time is worth more than a whole one late
    done     a branch is handed over whole, and its fork ended

The best `fan_out` outcomes, as they are known at a time, are rolling or were handed over. What was handed over before a
hint stays with the target, so there may be up to `fan_out` more in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from drafters.ahead import Ahead, BranchesReply, BranchJob, BranchRound, Lead, drafted_behind
from drafters.known import Key, draft_room
from drafters.nested import Pick
from drafters.resident import Resident
from drafters.residents import Residents
from drafters.rounds import Draft
from protocol.branch import AheadRequest, AheadRow, BranchSource, ExitHint, HintRow
from protocol.draft import DraftStatus
from protocol.plan import DepthRule
from router.branches import Candidate, Guess, candidates

UNKNOWN = -1  # no token


class Branches:
    def __init__(self, residents: Residents, max_positions: int, vocab_size: int) -> None:
        self.num_finished = 0
        self._residents = residents
        self._max_positions = max_positions
        self._vocab_size = vocab_size
        self._rounds: dict[BranchRound, None] = {}  # those that may have branches to hand over

    def open(self, request: AheadRequest, reply: BranchesReply) -> BranchRound:
        round_ = BranchRound(request, reply)
        self._rounds[round_] = None
        return round_

    def take(self, round_: BranchRound, key: Key, row: AheadRow, depth: DepthRule, now: float) -> DraftStatus:
        """Take over its context and begin; without pages or a window that makes sense there are no branches."""
        wanted = row.length > 0 and row.fan_out > 0 and self._in_vocabulary(row.window)
        num_tokens = len(row.window) + 1 + row.length if wanted else 0
        context = replace(row.context, length=num_tokens, probe=False)
        drafted = self._residents.drafted(key, context, depth)
        window = row.window if wanted else ()
        status, length = self._residents.admit(key, context, depth, now, drafted, window)
        if status is DraftStatus.OK and length:
            self._begin(round_, self._residents[key], row, length, drafted)
        return status

    def hint(self, hint: ExitHint) -> None:
        """Of a round that is over, or never began here, it is nothing."""
        for row in hint.rows:
            resident = self._residents.get((hint.incarnation, row.sequence_id))
            ahead = resident.ahead if resident is not None else None
            if resident is None or ahead is None:
                continue
            if (ahead.round.round_id, ahead.base_length) == (hint.round_id, row.base_length):
                ahead.early = self._sensible(row)
                if ahead.is_led:
                    self._spread(resident, ahead)

    def drafted(self, key: Key, job: Draft) -> None:
        """Some of a branch, or of what begins with the lead."""
        resident = self._residents[key]
        ahead = resident.ahead
        if ahead is None:  # its round is over
            return
        if resident.job is job and (job.is_done or isinstance(job, Lead)):
            self._residents.withdraw(key)
        if isinstance(job, Lead):
            ahead.guesses.append(guess(job.picks[0], ahead.row.power))
            ahead.behind_lead = job.picks[1:]
            self._spread(resident, ahead)
        elif isinstance(job, BranchJob) and self._is_wanted(resident, job):
            (self._hand_over if job.is_done else self._tell)(resident, ahead, job)

    def _is_wanted(self, resident: Resident, job: BranchJob) -> bool:
        """It is not when a lead that came in the same pass made others more likely."""
        fork = resident.forks.get(job.outcome)
        return job.candidate.source is BranchSource.FULL or (fork is not None and fork.job is job)

    def reply(self) -> None:
        rounds, self._rounds = self._rounds, {}
        for round_ in rounds:
            round_.reply()

    def _begin(
        self, round_: BranchRound, resident: Resident, row: AheadRow, length: int, drafted: Sequence[Pick]
    ) -> None:
        base = row.context.base_length
        guesses = [
            guess(resident.picks[at], row.power) if at in resident.picks else Guess(token, 0.5)
            for at, token in enumerate(row.window, base)
        ]
        ahead = resident.ahead = Ahead(round_, row, length - len(row.window) - 1, guesses, drafted)
        wanted = min(row.length, ahead.full_length)
        is_known = len(drafted_behind(row.window, drafted)) > wanted
        self._residents.give(resident.key, Lead(length=1 if is_known else 1 + wanted))
        if self._residents.drafts_next(resident):
            self._ride(resident, ahead)
        self._account(resident, ahead)

    def _ride(self, resident: Resident, ahead: Ahead) -> None:
        """Begins what is likely before the lead is known: branches within the window, one place left for the lead's."""
        unknown = Guess(UNKNOWN, 0.5)
        inside = [one for one in candidates([*ahead.guesses, unknown]) if one.accepted < len(ahead.row.window)]
        for candidate in inside[: ahead.row.fan_out - 1]:
            self._start(resident, ahead, candidate)

    def _spread(self, resident: Resident, ahead: Ahead) -> None:
        """Over the outcomes that are the best as things are known now."""
        best = candidates(ahead.guesses, ahead.early)[: ahead.row.fan_out]
        wanted = {(one.accepted, one.token): one for one in best}
        for outcome in [one for one in resident.forks if one not in wanted]:
            self._residents.end_fork(resident, outcome)
        if isinstance(resident.job, BranchJob) and resident.job.outcome not in wanted:
            self._residents.withdraw(resident.key)
        for outcome, candidate in wanted.items():
            if outcome not in ahead.begun:
                self._start(resident, ahead, candidate)
        self._account(resident, ahead)

    def _start(self, resident: Resident, ahead: Ahead, candidate: Candidate) -> None:
        path = ahead.path(candidate)
        is_full = candidate.source is BranchSource.FULL
        room = ahead.full_length if is_full else draft_room(ahead.base_length + len(path), self._max_positions)
        job = BranchJob(length=min(ahead.row.length, room), floor=ahead.row.floor, candidate=candidate, path=path)
        if job.length <= 0:
            return
        if not is_full and not self._residents.fork(resident, job):
            return
        ahead.begun[job.outcome] = job
        if is_full:
            self._go_on(resident, ahead, job)

    def _go_on(self, resident: Resident, ahead: Ahead, job: BranchJob) -> None:
        """Behind the lead, in the sequence itself, from what was drafted there with it or before."""
        before = drafted_behind(job.path, ahead.drafted)
        job.take(before if len(before) > len(ahead.behind_lead) else ahead.behind_lead)
        self._residents.follow(resident, ahead.base_length + len(job.path), job.picks)
        if job.is_done:
            self._hand_over(resident, ahead, job)
            return
        self._residents.give(resident.key, job)
        if job.picks:
            self._tell(resident, ahead, job)

    def _tell(self, resident: Resident, ahead: Ahead, job: BranchJob) -> None:
        """What there is of a branch that goes on."""
        ahead.round.add(ahead.branch(job, resident.known.key()))
        self._rounds[ahead.round] = None

    def _hand_over(self, resident: Resident, ahead: Ahead, job: BranchJob) -> None:
        if job.outcome in resident.forks:
            self._residents.end_fork(resident, job.outcome)
        ahead.round.add(ahead.branch(job, resident.known.key()))
        self.num_finished += 1
        self._account(resident, ahead)

    def _account(self, resident: Resident, ahead: Ahead) -> None:
        """Whether more of its branches will come."""
        self._rounds[ahead.round] = None
        if resident.is_rolling:
            ahead.round.begin(resident.key[1])
        else:
            ahead.round.end(resident.key[1])

    def _in_vocabulary(self, tokens: Sequence[int]) -> bool:
        return all(0 <= token < self._vocab_size for token in tokens)

    def _sensible(self, row: HintRow) -> tuple[tuple[int, ...], ...]:
        """The early picks that the drafter can go on from."""
        return tuple(tuple(token for token in own if 0 <= token < self._vocab_size) for own in row.picks)


def guess(pick: Pick, power: float) -> Guess:
    return Guess(pick.token, pick.confidence**power, pick.runner_up if pick.runner_up >= 0 else None)
