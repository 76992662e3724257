"""A served target's policy: plain before there is a drafter, then the router's for that drafter."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial

import pytest

from deployments.config_speculation import GoodputSpeculation
from deployments.policies import adaptive
from link.discovery import Found, PoolMember
from protocol.plan import BatchView, Plan, SequenceView
from protocol.record import Origin, RoundRecord, RowRecord
from router.costs import Curve, DrafterCosts
from router.policy import Goodput
from targets.linked_policy import LinkedPolicy
from tests.deployments.harness import Directory, LoopThread, ScriptedPool, client, member, request, wait_until
from tests.router.curves import curves

EXITS = (2, 4, 6)
SETTINGS = GoodputSpeculation(length=8)


def drafter(exits: tuple[int, ...] = EXITS, fingerprint: str = "0") -> DrafterCosts:
    """Of the hand-made curves, with these exits."""
    costs = curves(overhead=0.05).drafter
    assert costs is not None
    num_rows, _, new, lengths = costs.draft.points
    points = (num_rows, tuple(map(float, exits)), new, lengths)
    ms = [costs.draft.at(n, d, k, j) for n in num_rows for d in exits for k in new for j in lengths]
    key = replace(costs.key, fingerprint=fingerprint)
    return DrafterCosts(key, Curve(costs.draft.axes, points, tuple(ms)), costs.link, costs.error)


def told(name: str, costs: DrafterCosts | None, exits: tuple[int, ...] = EXITS) -> PoolMember:
    return replace(member(name), costs=costs, exits=exits)


def learning() -> LinkedPolicy:
    return LinkedPolicy("large", curves(overhead=0.05).target, partial(adaptive, SETTINGS, max_rows=4))


def play(policy: LinkedPolicy | Goodput, rounds: int) -> list[Plan]:
    """Rounds of two rows in which half of all drafted tokens are accepted."""
    plans = []
    for number in range(rounds):
        plan = policy.plan(view(2))
        plans.append(plan)
        rows = tuple(
            RowRecord(at, length, length // 2, Origin.FRESH, plan.depth, length, (0.7,) * length)
            if plan.depth and length
            else RowRecord(at)
            for at, length in enumerate(plan.lengths)
        )
        committed = 2 + sum(row.num_accepted for row in rows)
        times = {"planned_s": 0.001, "drafted_s": 0.003, "verified_s": 0.006, "ended_s": 0.006}
        policy.observe(RoundRecord(number, plan, rows, 100.0, committed, **times))
    return plans


def view(num_rows: int) -> BatchView:
    return BatchView((SequenceView(100, 1000),) * num_rows)


def test_before_there_is_a_drafter_decoding_is_plain() -> None:
    policy = learning()
    assert policy.opening() is None
    assert policy.plan(view(3)) == Plan(None, (0, 0, 0))
    assert policy.describe() == {"policy": "off"}
    policy.linked(told("unmeasured", None))
    assert policy.describe() == {"policy": "off"}


def test_with_a_drafter_it_plans_as_the_router_does() -> None:
    policy = learning()
    assert all(plan == Plan(None, (0, 0)) for plan in play(policy, 7))
    policy.linked(told("pool-0", drafter()))
    itself = adaptive(SETTINGS, curves(overhead=0.05), EXITS, max_rows=4)
    assert isinstance(itself, Goodput)
    plans = play(policy, 150)
    assert plans == play(itself, 150)
    assert any(any(plan.lengths) for plan in plans)
    assert policy.describe()["policy"] == "goodput"


def test_a_replica_of_the_same_drafter_changes_nothing_and_another_drafter_starts_anew() -> None:
    policy = learning()
    policy.linked(told("pool-0", drafter()))
    play(policy, 100)
    learned = policy.describe()
    policy.linked(told("pool-1", drafter()))
    assert policy.describe() == learned
    policy.linked(told("pool-2", drafter((2, 6), "another"), (2, 6)))
    fresh = policy.describe()
    assert list(fresh["acceptance"]) == ["2", "6"]
    assert fresh["unseen_tokens"] == {"2": 0.0, "6": 0.0}


def test_a_round_is_finished_by_the_policy_that_planned_it() -> None:
    policy = learning()
    policy.linked(told("pool-0", drafter()))
    play(policy, 20)
    plan = policy.plan(view(2))
    policy.linked(told("pool-1", drafter((2, 6), "another"), (2, 6)))
    fresh = policy.describe()
    policy.observe(RoundRecord(21, plan, (RowRecord(0), RowRecord(1)), 100.0, 2))
    assert policy.describe() == fresh
    assert policy.plan(view(2)).depth in (2, 6, None)


class Measured(Directory):
    """Draft replicas that tell what they cost."""

    def __init__(self, *pools: ScriptedPool) -> None:
        super().__init__(*pools)
        self.costs: dict[str, DrafterCosts] = {}

    async def __call__(self) -> Found:
        return Found([replace(pool.member, costs=self.costs[pool.name]) for pool in self.pools])


def test_the_first_link_turns_it_on_and_a_dead_pool_changes_nothing(
    runner: LoopThread,
) -> None:
    policy, directory = learning(), Measured()
    first, second, third = (ScriptedPool(name) for name in ("pool-0", "pool-1", "pool-2"))
    directory.costs = {"pool-0": drafter(), "pool-1": drafter(), "pool-2": drafter(fingerprint="another")}
    with client(runner, directory, on_link=policy.linked) as drafts:
        assert policy.describe() == {"policy": "off"}
        directory.pools = [first]
        wait_until(lambda: policy.describe()["policy"] == "goodput")
        play(policy, 60)
        learned = policy.describe()
        directory.pools = []
        first.kill()
        wait_until(lambda: drafts.replica is None)
        assert policy.describe() == learned
        for pool, stays in ((second, True), (third, False)):
            directory.pools = [pool]
            wait_until(lambda name=pool.name: drafts.replica == name)
            wait_until(lambda stays=stays: (policy.describe() == learned) == stays)
            directory.pools = []
            pool.kill()
            wait_until(lambda: drafts.replica is None)


def test_a_link_is_used_even_if_the_policy_refuses_its_drafter(
    runner: LoopThread, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(member: PoolMember) -> None:
        raise ValueError("no costs for exit 3")

    pool = ScriptedPool()
    with client(runner, Directory(pool), on_link=refuse) as drafts:
        wait_until(lambda: "no costs for exit 3" in caplog.text)
        assert drafts.draft(request(1, (1, 0, 4))) is not None
    pool.kill()


def test_other_threads_describe_and_replace_it_while_it_plans() -> None:
    policy, over = learning(), threading.Event()
    failures: list[BaseException] = []

    def look() -> None:
        number = 0
        try:
            while not over.is_set():
                policy.describe()
                number += 1
                policy.linked(told(f"pool-{number}", drafter(fingerprint=str(number % 3))))
        except BaseException as error:
            failures.append(error)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        play(policy, 300)
    finally:
        over.set()
        watcher.join()
    assert failures == []
