"""What a policy or a pool may not do to a round, each kind of it by itself."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from protocol.branch import AheadClient, AheadRequest, Branch
from protocol.draft import DraftBlock, DraftReply, DraftRequest, DraftRow, DraftStatus
from protocol.plan import BatchView, Mode, Plan, SequenceView
from protocol.record import RoundRecord
from protocol.request import SamplingParams
from router.policy import Fixed, Policy
from targets.fence import FIRST, Fence
from targets.guarded import GuardedAheadClient, GuardedPolicy

DEPTH = 2
NAN, INF = float("nan"), float("inf")
VIEW = BatchView((SequenceView(9, 20), SequenceView(9, 3)))
PLAIN = Plan(None, (0, 0))
GOOD = Plan(DEPTH, (4, 2))
REQUEST = DraftRequest("t", 1, DEPTH, (DraftRow(0, 0, (5, 6), 2, SamplingParams()),))


def block(tokens: Any = (3, 4), confidences: Any = (0.5, 1.0)) -> DraftBlock:
    return DraftBlock(0, 2, DraftStatus.OK, tokens, confidences)


def reply(*blocks: DraftBlock, wait_ms: float = 0.0) -> DraftReply:
    return DraftReply("t", 1, blocks, wait_ms)


def branch(tokens: Any = (3, 4), confidences: Any = (0.5, 1.0)) -> Branch:
    return Branch(0, 2, 77, tokens, confidences)


class Says:
    """A policy of one plan, or one that raises it."""

    def __init__(self, plan: Any) -> None:
        self.answer = plan
        self.seen: list[RoundRecord] = []

    def opening(self) -> int | None:
        return given(DEPTH, self.answer)

    def plan(self, view: BatchView) -> Plan:
        return given(self.answer)

    def observe(self, record: RoundRecord) -> None:
        self.seen.append(given(record, self.answer))


class Pool:
    """A AheadClient that gives one answer to everything, or raises it."""

    def __init__(self, answer: Any) -> None:
        self.closed: list[int] = []
        self.open = self.draft = self.ahead = self.branches = lambda *_: given(answer)
        self._answer = answer

    def close(self, sequence_ids: Sequence[int]) -> None:
        self.closed += sequence_ids
        given(self._answer)


def given(answer: Any, unless: Any = None) -> Any:
    for one in (answer, unless):
        if isinstance(one, Exception):
            raise one
    return answer


class Guard:
    """Fences whose rounds pass by hand."""

    def __init__(self) -> None:
        self.now = 0
        self.fence = Fence("part", lambda: self.now)

    def policy(self, policy: Policy) -> GuardedPolicy:
        return GuardedPolicy(policy, self.fence)

    def client(self, answer: Any) -> GuardedAheadClient:
        return GuardedAheadClient(Pool(answer), self.fence)


@pytest.fixture
def guard() -> Guard:
    return Guard()


@pytest.mark.parametrize(
    "plan",
    [
        ZeroDivisionError("no time at all"),
        None,
        Plan(DEPTH, (4,)),
        Plan(DEPTH, (4, 2, 1)),
        Plan(DEPTH, (4, 3)),  # more than the second one can still commit
        Plan(DEPTH, (-1, 2)),
        Plan(DEPTH, (2.5, 2)),  # type: ignore[arg-type]
        Plan(DEPTH, (NAN, 2)),  # type: ignore[arg-type]
        Plan(DEPTH, (4, 2), own=(DEPTH,)),
        Plan(DEPTH, (4, 2), stop_probability=NAN),
        Plan(DEPTH, (4, 2), mode=Mode.AHEAD),  # the view does not allow it
    ],
)
def test_a_plan_that_fits_no_round_is_plain_decoding_and_the_policy_comes_back(guard: Guard, plan: Any) -> None:
    policy = Says(plan)
    guarded = guard.policy(policy)
    assert guarded.plan(VIEW) == PLAIN
    policy.answer = GOOD
    assert guarded.plan(VIEW) == PLAIN
    guard.now += FIRST
    assert guarded.plan(VIEW) == GOOD
    assert guard.fence.num_failures == 1


def test_a_policy_that_cannot_learn_is_not_asked_for_a_while(guard: Guard) -> None:
    policy = Says(ValueError("nothing to learn"))
    guarded = guard.policy(policy)
    record = RoundRecord(0, PLAIN, (), 0.0, 0)
    guarded.observe(record)
    policy.answer = GOOD
    guarded.observe(record)
    assert (guarded.opening(), guarded.plan(VIEW), policy.seen) == (None, PLAIN, [])
    guard.now += FIRST
    guarded.observe(record)
    assert (guarded.opening(), guarded.plan(VIEW), policy.seen) == (DEPTH, GOOD, [record])


def test_a_sound_policy_goes_through(guard: Guard) -> None:
    ahead = replace(VIEW, modes=(Mode.AHEAD,))
    for fixed, view in ((Fixed(DEPTH, 4), VIEW), (Fixed(DEPTH, 4), ahead), (Fixed(DEPTH, 4, Mode.AHEAD), ahead)):
        guarded = guard.policy(fixed)
        assert (guarded.opening(), guarded.plan(view)) == (fixed.opening(), fixed.plan(view))


NONSENSE: tuple[dict[str, Any], ...] = (
    {"tokens": (3, -1)},
    {"tokens": (3, 4, 5)},
    {"tokens": ()},
    {"confidences": (0.5,)},
    {"confidences": (0.5, NAN)},
    {"confidences": (NAN, 0.5)},
    {"confidences": (0.5, INF)},
    {"confidences": (0.5, -0.1)},
    {"confidences": (0.5, 1.5)},
    {"confidences": None},
)


@pytest.mark.parametrize("fields", NONSENSE)
def test_what_no_drafter_can_mean_is_no_draft_and_no_branch(guard: Guard, fields: dict[str, Any]) -> None:
    assert guard.client(reply(block(), block(**fields))).draft(REQUEST) is None
    guard.now += FIRST
    assert guard.client([branch(), branch(**fields)]).branches() == ()
    assert guard.fence.num_failures == 2


@pytest.mark.parametrize(
    "answer",
    [
        reply(block(), wait_ms=NAN),
        reply(block(), wait_ms=-1.0),
        reply(block(), wait_ms=INF),
        "no reply",
        DraftReply("t", 1, None),  # type: ignore[arg-type]
        RuntimeError("the link is gone"),
    ],
)
def test_an_answer_that_is_none_is_a_round_without_drafts(guard: Guard, answer: Any) -> None:
    assert guard.client(answer).draft(REQUEST) is None
    guard.now += FIRST
    assert guard.client(answer).draft(REQUEST) is None
    assert guard.fence.num_failures == 2


def test_sound_answers_go_through_whatever_their_tokens_and_sequences(guard: Guard) -> None:
    sound = reply(block((10**9, 4)), block((), ()), block(confidences=(0.0, 1.0000001)), wait_ms=3.0)
    assert guard.client(sound).draft(REQUEST) is sound
    branches = [branch(), branch((), ())]
    assert guard.client(branches).branches() is branches
    assert guard.client(None).draft(REQUEST) is None
    assert guard.fence.num_failures == 0


CALLS: tuple[Callable[[AheadClient], object], ...] = (
    lambda client: client.open(REQUEST),
    lambda client: client.draft(REQUEST),
    lambda client: client.ahead(AheadRequest("t", 1, DEPTH, ())),
    lambda client: client.branches(),
    lambda client: client.close([1]),
)


@pytest.mark.parametrize("call", CALLS)
def test_whatever_a_pool_raises_it_is_left_alone_for_a_while(guard: Guard, call: Callable[[AheadClient], Any]) -> None:
    assert not call(guard.client(RuntimeError("gone")))
    sound = reply(block())
    assert guard.client(sound).draft(REQUEST) is None
    guard.now += FIRST
    assert guard.client(sound).draft(REQUEST) is sound


def test_what_a_pool_is_to_forget_it_is_told_even_while_it_is_left_alone(guard: Guard) -> None:
    pool = Pool(RuntimeError("gone"))
    client = GuardedAheadClient(pool, guard.fence)
    client.close([1])
    client.close([2])
    assert pool.closed == [1, 2]
