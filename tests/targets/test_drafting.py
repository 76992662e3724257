"""What a target tells the pool, and how it takes the answers. A recording client stands at the seam."""

import itertools

import pytest

from protocol.draft import DraftBlock, DraftReply, DraftRow, DraftStatus
from protocol.plan import Plan
from protocol.record import Origin
from protocol.request import GenerateRequest, SamplingParams, StopRules
from targets.drafting import MAX_NOT_YET, MAX_SILENCE, Drafting
from targets.sequence import Sequence

DEPTH = 2
SAMPLING = SamplingParams(seed=9)
VOCAB = 100


class Recorder:
    """Answers every row with a status and remembers what was asked."""

    def __init__(self, status: DraftStatus | None = DraftStatus.OK, base_shift: int = 0) -> None:
        self.status = status
        self.base_shift = base_shift
        self.requests = []
        self.opened = []
        self.closed = []

    def open(self, request):
        self.opened.append(request)

    def draft(self, request):
        self.requests.append(request)
        if self.status is None:
            return None
        blocks = [self._block(row) for row in request.rows]
        return DraftReply(request.incarnation, request.round_id, tuple(blocks))

    def _block(self, row):
        count = row.length + 1 if self.status is DraftStatus.OK else 0
        base = row.base_length + self.base_shift
        return DraftBlock(row.sequence_id, base, self.status, (5,) * count, (0.5,) * count)

    def close(self, sequence_ids):
        self.closed += sequence_ids


def sequence(number: int = 0) -> Sequence:
    return Sequence(number, GenerateRequest(str(number), (1, 2, 3), SamplingParams(seed=9), StopRules(5000)), 9999)


def tokens(drafting: Drafting, members: list[Sequence], lengths: list[int]) -> list[tuple[int, ...]]:
    drafts = drafting.draft(members, Plan(DEPTH, tuple(lengths)))
    return [proposal.tokens if proposal else () for proposal in drafts.rows]


def rounds(client: Recorder, count: int) -> tuple[Drafting, Sequence]:
    drafting, member = Drafting(client, "engine", VOCAB), sequence()
    for _ in range(count):
        tokens(drafting, [member], [2])
        member.commit([7])
    return drafting, member


def test_each_token_is_handed_over_once():
    client = Recorder()
    drafting, member = Drafting(client, "engine", VOCAB), sequence()
    drafting.open([member], DEPTH)
    for _ in range(2):
        member.commit([7])
        tokens(drafting, [member], [2])
    rows = [request.rows[0] for request in client.opened + client.requests]
    assert [(row.start, row.tokens, row.length) for row in rows] == [(0, (1, 2, 3), 0), (3, (7,), 2), (4, (7,), 2)]
    assert rows[0].sampling == member.request.sampling


def test_rows_of_length_zero_are_not_sent_and_a_round_of_them_asks_nothing():
    client = Recorder()
    drafting = Drafting(client, "engine", VOCAB)
    assert tokens(drafting, [sequence(0), sequence(1)], [0, 3]) == [(), (5, 5, 5)]
    assert [row.sequence_id for row in client.requests[0].rows] == [1]
    tokens(drafting, [sequence(0)], [0])
    assert len(client.requests) == 1


def test_a_row_is_asked_for_what_the_plan_says_of_it():
    client = Recorder()
    drafting, deep = Drafting(client, "engine", VOCAB), 4
    members = [sequence(number) for number in range(3)]
    plan = Plan(DEPTH, (2, 0, 1), own=(None, None, deep), stop_probability=0.25)
    drafts = drafting.draft(members, plan)
    (request,) = client.requests
    asked = [DraftRow(0, 0, (1, 2, 3), 2, SAMPLING, None, 0.25), DraftRow(2, 0, (1, 2, 3), 1, SAMPLING, deep, 0.0)]
    assert request.rows == tuple(asked)
    first, second, third = drafts.rows
    assert (first.depth, first.length, first.origin, first.tokens) == (DEPTH, 2, Origin.FRESH, (5, 5))
    assert (second, third.depth, third.length) == (None, deep, 1)
    assert drafts.num_fed == (3, 0, 3)
    assert [drafting.view(member).num_unseen for member in (*members, sequence(3))] == [0, 3, 0, 3]


def test_a_first_draft_waits_for_the_whole_context_though_it_was_handed_over_before():
    client, member = Recorder(), sequence()
    drafting = Drafting(client, "engine", VOCAB)
    drafting.open([member], DEPTH)
    fed = []
    for status in (DraftStatus.OK, DraftStatus.OK, DraftStatus.NEED_CONTEXT, DraftStatus.OK, DraftStatus.OK):
        client.status = status
        member.commit([7])
        fed += drafting.draft([member], Plan(DEPTH, (2,))).num_fed
    assert fed == [4, 1, 1, 7, 1]


def test_a_busy_pool_makes_a_sequence_silent_for_the_rounds_that_it_will_not_ask_in():
    drafting, member = Drafting(Recorder(DraftStatus.BUSY), "engine", VOCAB), sequence()
    asked = []
    for _ in range(20):
        silent, before = not drafting.view(member).drafts, len(drafting.client.requests)
        tokens(drafting, [member], [2])
        asked.append((silent, len(drafting.client.requests) > before))
    assert set(asked) == {(True, False), (False, True)}


def test_a_full_pool_is_asked_ever_less_often_but_never_given_up():
    client = Recorder(DraftStatus.BUSY)
    rounds(client, 1000)
    asked = [request.round_id for request in client.requests]
    pauses = [b - a for a, b in itertools.pairwise(asked)]
    assert pauses[:4] == [2, 4, 8, 16]
    assert set(pauses[6:]) == {MAX_SILENCE}
    assert all(request.rows[0].start == 0 for request in client.requests)


def test_a_pool_that_reads_a_context_is_asked_again_at_once_and_then_ever_less_often():
    client = Recorder(DraftStatus.NOT_YET)
    rounds(client, 40)
    asked = [request.round_id for request in client.requests]
    assert [b - a for a, b in itertools.pairwise(asked)][:5] == [1, 2, 4, 8, 8]


def test_a_pool_that_reads_a_context_after_it_was_full_is_asked_again_within_a_few_rounds():
    client = Recorder(DraftStatus.BUSY)
    drafting, member = rounds(client, 200)
    client.status, before = DraftStatus.NOT_YET, len(client.requests)
    while len(client.requests) == before:
        tokens(drafting, [member], [2])
    for _ in range(MAX_NOT_YET):
        tokens(drafting, [member], [2])
    assert len(client.requests) == before + 2


class OneRow(Recorder):
    """A pool with room for sequence 0 alone."""

    def _block(self, row):
        fits = row.sequence_id == 0
        return DraftBlock(
            row.sequence_id, row.base_length, DraftStatus.OK if fits else DraftStatus.BUSY, (5,) if fits else ()
        )


@pytest.mark.parametrize(("batch", "at_least", "at_most"), [(3, 300, 300), (4, 0, 12), (8, 0, 12)])
def test_a_batch_does_not_wait_for_a_pool_that_serves_few_of_its_rows(batch, at_least, at_most):
    client = OneRow()
    drafting = Drafting(client, "engine", VOCAB)
    members = [sequence(number) for number in range(batch)]
    for _ in range(300):
        tokens(drafting, members, [2] * batch)
    assert at_least <= len(client.requests) <= at_most


@pytest.mark.parametrize(
    ("status", "starts"),
    [
        (DraftStatus.NEED_CONTEXT, [0, 0, 0]),
        (None, [0, 0, 0]),  # the deadline was missed
        (DraftStatus.TOO_LONG, [0]),  # for good
        (DraftStatus.NOT_YET, [0, 3]),  # nothing is handed over twice, and not every round asks
        (DraftStatus.OK, [0, 3, 4]),
    ],
)
def test_what_is_handed_over_next_depends_on_the_answer(status, starts):
    client = Recorder(status)
    rounds(client, 3)
    assert [request.rows[0].start for request in client.requests] == starts


@pytest.mark.parametrize(
    ("base_shift", "vocab_size", "kept"), [(0, 100, (5, 5)), (1, 100, ()), (0, 5, ()), (0, 6, (5, 5))]
)
def test_a_draft_for_another_base_is_dropped_and_one_is_cut_at_its_length_and_at_a_token_that_the_target_lacks(
    base_shift, vocab_size, kept
):
    assert tokens(Drafting(Recorder(base_shift=base_shift), "engine", vocab_size), [sequence()], [2]) == [kept]


def test_only_sequences_the_pool_heard_of_are_closed():
    client = Recorder()
    drafting, member = rounds(client, 1)
    drafting.close(member)
    drafting.close(member)
    drafting.close(sequence(1))
    assert client.closed == [0]


def test_context_for_drafting_ahead_is_handed_over_once_too_and_not_while_a_sequence_is_silent():
    client, deep = Recorder(), 4
    drafting, members = Drafting(client, "engine", VOCAB), [sequence(0), sequence(1)]
    drafting.draft(members, Plan(DEPTH, (2, 0)))
    assert drafting.context(members[0], deep) == DraftRow(0, 3, (), 0, SAMPLING, deep)
    members[0].commit([7])
    assert drafting.context(members[0], deep) == DraftRow(0, 3, (7,), 0, SAMPLING, deep)
    assert [drafting.view(member).num_unseen for member in members] == [0, 3]
    client.status = DraftStatus.NOT_YET
    drafting.draft(members[:1], Plan(DEPTH, (2,)))
    assert drafting.context(members[0], None) is None


def test_a_context_that_the_pool_knows_nothing_of_goes_with_a_request_for_a_draft_which_hears_of_a_refusal():
    client = Recorder()
    drafting, member = Drafting(client, "engine", VOCAB), sequence()
    assert drafting.is_unknown(member)
    assert drafting.context(member, None) is None
    drafting.close(member)
    assert not client.closed, "the pool never heard of it"
    drafting.open([member], DEPTH)
    assert not drafting.is_unknown(member)
    assert drafting.context(member, None) is not None
    for status in (DraftStatus.NEED_CONTEXT, DraftStatus.BUSY):
        client.status = status
        drafting.draft([member], Plan(DEPTH, (2,)))
        assert drafting.is_unknown(member)
        assert drafting.context(member, None) is None


def test_a_row_that_was_not_ready_yet_waits_for_its_whole_context_once():
    client = Recorder(DraftStatus.NOT_YET)
    drafting, member = rounds(client, 3)
    assert drafting.view(member).drafts
    client.status = DraftStatus.OK
    assert drafting.draft([member], Plan(DEPTH, (2,))).num_fed == (6,)
    assert drafting.draft([member], Plan(DEPTH, (2,))).num_fed == (0,)


def test_what_was_handed_over_at_admission_counts_as_unseen_until_the_first_draft():
    drafting, member = Drafting(Recorder(), "engine", VOCAB), sequence(0)
    drafting.open([member], DEPTH)
    assert drafting.view(member).num_unseen == 3
    drafting.draft([member], Plan(DEPTH, (2,)))
    assert drafting.view(member).num_unseen == 0


def test_a_pool_that_is_behind_is_handed_no_more_before_the_first_draft_of_another():
    client, members = Recorder(), [sequence(number) for number in range(3)]
    drafting = Drafting(client, "engine", VOCAB, reads_meanwhile=True)
    drafting.open(members[:1], DEPTH)
    drafting.open(members[1:2], DEPTH)
    assert [drafting.view(member).num_unseen for member in members[:2]] == [0, 3]
    drafting.draft(members[:1], Plan(DEPTH, (2,)))
    drafting.open(members[2:], DEPTH)
    assert drafting.view(members[2]).num_unseen == 0


def test_contexts_that_are_read_in_vain_are_handed_over_more_and_more_seldom():
    drafting, opened = Drafting(Recorder(), "engine", VOCAB, reads_meanwhile=True), []
    for number in range(16):
        member = sequence(number)
        drafting.open([member], DEPTH)
        opened.append(drafting.view(member).num_unseen == 0)
        drafting.close(member)
    assert [number for number, was in enumerate(opened) if was] == [0, 2, 6, 14]


def test_what_a_pool_reads_while_the_target_works_counts_as_seen():
    drafting, member = Drafting(Recorder(), "engine", VOCAB, reads_meanwhile=True), sequence(0)
    drafting.open([member], DEPTH)
    assert drafting.view(member).num_unseen == 0
