"""The oracle as a pool: branches are its drafts, they take their time, and a draft goes on from the one that won."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from bench.oracle import KnownText, OracleDrafter, Ranking
from bench.oracle_pool import OraclePool
from bench.slowed import Device
from model.decoder import Decoder
from protocol.branch import AheadRequest, AheadRow, Branch, BranchSource, ExitHint, HintRow, MirrorClient, prefix_hash
from protocol.draft import DraftReply, DraftRequest, DraftRow, DraftStatus
from protocol.plan import DepthRule
from protocol.request import SamplingParams
from tests.bench.standins import Oracles
from tests.drafters import test_client_contract as contract
from tests.drafters import test_mirror_contract as mirror_contract

VOCAB = 50
GREEDY = SamplingParams(temperature=0)
DEPTH = DepthRule((2,))
PATIENCE_S = 20.0


class Steps:
    """A clock that stands still, and goes on by a step whenever one is allowed."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept = threading.Semaphore(0)
        self._allowed = threading.Semaphore(0)

    def device(self) -> Device:
        return Device("steps", clock=lambda: self.now, sleep=self._sleep)

    def allow(self, count: int) -> None:
        self._allowed.release(count)

    def _sleep(self, seconds: float) -> None:
        self.slept.release()
        assert self._allowed.acquire(timeout=PATIENCE_S)
        self.now += seconds

    def wait_for_sleep(self, count: int) -> None:
        """Until so many more steps have begun."""
        for _ in range(count):
            assert self.slept.acquire(timeout=PATIENCE_S)


def oracle_of(tokens: Sequence[int], ranking: Ranking) -> OracleDrafter:
    return OracleDrafter([KnownText(tuple(tokens[:3]), GREEDY, tuple(tokens[3:]))], ranking)


def asked(tokens: Sequence[int], length: int, start: int = 0, sequence_id: int = 1) -> DraftRequest:
    row = DraftRow(sequence_id, start, tuple(tokens[start:]), length, GREEDY)
    return DraftRequest("target", 1, DEPTH, (row,))


def ahead(tokens: Sequence[int], window: Sequence[int], length: int, fan_out: int, start: int = 0) -> AheadRequest:
    context = DraftRow(1, start, tuple(tokens[start:]), 0, GREEDY)
    return AheadRequest("target", 1, DEPTH, (AheadRow(context, tuple(window), length, fan_out),))


def fresh(tokens: Sequence[int], ranking: Ranking, length: int, known: Sequence[int]) -> tuple[int, ...]:
    """The obvious draft: of an oracle that never saw the sequence before."""
    (block,) = oracle_of(known, ranking).draft(asked(tokens, length)).blocks
    return block.tokens


def gathered(pool: MirrorClient) -> list[Branch]:
    return list(pool.branches(PATIENCE_S))


def test_every_branch_behind_a_true_outcome_is_what_a_fresh_draft_would_be() -> None:
    num_foreseen = num_full = num_told = 0
    for seed in range(60):
        rng = random.Random(seed)
        text = [rng.randrange(VOCAB) for _ in range(60)]
        ranking = Ranking({2: rng.choice([0.3, 0.6, 0.9])}, rng.choice([0.0, 0.5, 1.0]), VOCAB, seed)
        num_window, length, fan_out = rng.randint(0, 4), rng.randint(1, 5), rng.randint(1, 8)
        committed = text[: rng.randint(3, 20)]
        with OraclePool(oracle_of(text, ranking), Device("0 ms"), 0.0) as pool:
            window = fresh(committed, ranking, num_window, text) if num_window else ()
            pool.ahead(ahead(committed, window, length, fan_out))
            came = gathered(pool)
            accepted = 0
            while accepted < len(window) and window[accepted] == text[len(committed) + accepted]:
                accepted += 1
            outcome = text[: len(committed) + accepted + 1]
            pool.draft(asked(outcome, length, start=len(committed)))
            told = pool.num_foreseen
        assert 1 <= len(came) <= min(fan_out, num_window + 2)
        assert len({branch.key for branch in came}) == len(came)
        found = [branch for branch in came if branch.key == prefix_hash(outcome)]
        assert told == len(found) <= pool.num_outcomes == 1
        for branch in found:
            assert branch.base_length == len(outcome)
            assert branch.tokens == fresh(outcome, ranking, length, text)
            assert (branch.exits, len(branch.confidences)) == ((2,) * length, length)
            assert (branch.source is BranchSource.FULL) is (
                accepted == num_window and ranking.best_two(0, len(outcome) - 1, 2, outcome[-1])[0] == outcome[-1]
            )
            num_full += branch.source is BranchSource.FULL
        num_foreseen += len(found)
        num_told += told
    assert 0 < num_full < num_foreseen == num_told < 60


@contextmanager
def stepped(acceptance: float) -> Iterator[tuple[OraclePool, Steps, list[int]]]:
    """A pool of one known text, a step of 10 ms at a time."""
    steps, text = Steps(), list(range(3, 45))
    with OraclePool(oracle_of(text, Ranking({2: acceptance}, 0.0, VOCAB)), steps.device(), 10.0) as pool:
        yield pool, steps, text


def drafted(pool: OraclePool, request: DraftRequest) -> Callable[[], DraftReply | None]:
    """Asked for on a thread of its own; waits for the reply when called."""
    replies: list[DraftReply | None] = []
    thread = threading.Thread(target=lambda: replies.append(pool.draft(request)))
    thread.start()

    def reply() -> DraftReply | None:
        thread.join(PATIENCE_S)
        return replies[0]

    return reply


def until_in(pool: OraclePool) -> None:
    """Until a message lies in the inbox of a pool whose step is under way."""
    until = time.monotonic() + PATIENCE_S
    while not pool._inbox and time.monotonic() < until:
        time.sleep(0.001)
    assert pool._inbox


def test_branches_take_a_step_for_the_lead_and_one_for_each_token() -> None:
    with stepped(1.0) as (pool, steps, text):
        pool.ahead(ahead(text[:10], text[10:13], length=4, fan_out=8))
        for _ in range(4):
            steps.wait_for_sleep(1)
            steps.allow(1)
        steps.wait_for_sleep(1)
        assert list(pool.branches()) == []
        steps.allow(1)
        came = gathered(pool)
    assert max(came, key=lambda branch: branch.base_length).tokens == tuple(text[14:18])
    assert steps.now == pytest.approx(0.05)


@pytest.mark.parametrize("done", [0, 1, 2, 4])
@pytest.mark.parametrize("foreseen", [True, False])
def test_a_draft_takes_the_steps_that_its_branch_has_not_had_and_all_where_it_has_none(
    done: int, foreseen: bool
) -> None:
    with stepped(1.0 if foreseen else 0.0) as (pool, steps, text):
        window = text[10:12] if foreseen else [0, 0]
        outcome = text[: 13 if foreseen else 11]
        pool.ahead(ahead(text[:10], window, length=4, fan_out=4))
        for _ in range(done):
            steps.wait_for_sleep(1)
            steps.allow(1)
        steps.wait_for_sleep(1)  # the next one is under way: it ends before the draft is read
        reply = drafted(pool, asked(outcome, 4, start=10))
        until_in(pool)
        steps.allow(20)
        answer = reply()
        assert (pool.num_foreseen, pool.num_outcomes) == (foreseen, 1)
        assert round(steps.now / 0.01) == (5 if foreseen else done + 1 + 4)
    assert answer is not None
    assert len(answer.blocks[0].tokens) == 4


@pytest.mark.parametrize("foreseen", [True, False])
def test_once_branches_are_there_a_draft_behind_one_takes_no_step(foreseen: bool) -> None:
    with stepped(1.0 if foreseen else 0.0) as (pool, steps, text):
        steps.allow(20)
        pool.ahead(ahead(text[:10], text[10:12] if foreseen else [0, 0], length=4, fan_out=4))
        assert gathered(pool)
        assert pool.draft(asked(text[: 13 if foreseen else 11], 4, start=10)) is not None
        assert (pool.num_foreseen, pool.num_outcomes) == (foreseen, 1)
        assert round(steps.now / 0.01) == (5 if foreseen else 9)


def test_what_is_not_known_or_not_open_brings_no_branch_and_a_hint_is_not_heeded() -> None:
    with stepped(1.0) as (pool, steps, text):
        steps.allow(5)
        pool.ahead(ahead(text[:10], text[10:12], 3, 4, start=5))
        pool.ahead(ahead([*text[:10], 49], (1, 2), 3, 4))
        pool.hint(ExitHint("target", 1, (HintRow(1, 11, ((7,), (8,), (9,))),)))
        reply = pool.draft(asked(text[:10], 2, start=5, sequence_id=2))
        assert reply is not None
        assert reply.blocks[0].status is DraftStatus.NEED_CONTEXT
        assert list(pool.branches()) == []
    assert steps.now == 0


class PooledOracles(Oracles):
    """A `Connect` of the contract: the oracle of tests/bench/standins.py behind a device that takes no time."""

    @contextmanager
    def __call__(self, worker: object, incarnation: str, deadline_s: float) -> Iterator[MirrorClient]:
        with super().__call__(worker, incarnation, deadline_s), OraclePool(self.clients[-1], Device("0"), 0.0) as pool:
            yield pool


@pytest.mark.parametrize(
    "keeps_to",
    [
        contract.test_the_next_round_carries_only_what_is_new,
        contract.test_opening_hands_over_context_so_that_a_draft_needs_none,
        contract.test_an_unknown_sequence_needs_context_and_is_drafted_for_when_it_comes,
        contract.test_a_full_pool_says_so_row_by_row,
        contract.test_closing_forgets_sequences_and_does_not_mind_unknown_ones,
        contract.test_two_clients_with_the_same_sequence_ids_do_not_meet,
        mirror_contract.test_after_a_branch_has_won_a_draft_goes_on_from_it,
        mirror_contract.test_drafting_ahead_for_an_unknown_sequence_brings_nothing_and_no_error,
        mirror_contract.test_closing_ends_what_is_drafted_ahead,
    ],
    ids=lambda test: test.__name__,
)
def test_the_pool_keeps_to_the_contract_of_mirror_clients(
    keeps_to: Callable[..., None],
    decoder: Decoder,
) -> None:
    """All of it but what a model decides, what takes time, and what heeds a hint."""
    oracles = PooledOracles(decoder)
    given = {"connect": oracles, "worker": oracles, "llama": decoder}
    names = keeps_to.__code__.co_varnames[: keeps_to.__code__.co_argcount]
    keeps_to(**{name: given[name] for name in names})
