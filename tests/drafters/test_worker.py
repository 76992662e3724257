from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from drafters.cached_tokens import CachedTokens
from drafters.limits import PoolLimits
from drafters.pending import WAIT_HALF_LIFE_S, Answer, MeanWait, PendingRequest
from drafters.picks import PassRow, Pick
from drafters.row import Priority, Row
from model.decoder import Decoder
from protocol.draft import DraftReply, DraftRequest, DraftRow, DraftStatus
from protocol.request import SamplingParams
from tests.drafters.pool import DEEP, EXITS, GREEDY, SHALLOW, Pool, RandomTarget, expected, row, text
from tests.reference.drafting import draft_from_scratch
from tests.sizes import quick


@pytest.mark.parametrize("seed", quick(range(12), 3))
def test_two_targets_share_the_pool_and_each_gets_what_a_fresh_drafter_would_say(llama: Decoder, seed: int) -> None:
    """Random accepts and rejects, depths that change and differ from row to row, floors, chunks, closes; targets ask
    whenever their answer is there.
    """
    rng = random.Random(seed)
    limits = PoolLimits(prefill_tokens=rng.choice([3, 8, 64]), max_ride=rng.choice([2, 8]), ahead=rng.choice([1, 3, 8]))
    pool = Pool(llama, limits, num_pages=512, page_size=rng.choice([1, 2]))
    targets = [RandomTarget(pool, llama, name, rng) for name in ("large", "small")]
    for _ in range(120):
        for target in targets:
            target.take_reply()
            if target.waiting is None and rng.random() < 0.5:
                target.ask(rng.choice(EXITS))
                pool.worker.check()
            elif rng.random() < 0.01:
                target.close(rng.randrange(3))
        pool.step()
    pool.run()
    for target in targets:
        target.take_reply()
        assert min(target.num_accepted, target.num_rejected, target.num_full) > 10
        assert target.num_sunk > 1
        assert not target.num_refused[DraftStatus.BUSY]
        pool.worker.drop(target.incarnation)
    stats = pool.worker.stats()
    assert stats.num_mixed_passes > 5
    assert (stats.num_sequences, stats.num_free_pages) == (0, stats.num_pages)


def test_a_model_that_drafts_for_itself_predicts_its_own_greedy_text(llama: Decoder, llama_directory: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_directory, dtype=torch.float32)
    prompt = text(20)
    output = model.generate(
        torch.tensor([prompt]), max_new_tokens=40, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0].tolist()
    pool = Pool(llama)
    start, base = 0, len(prompt)
    while base + 4 < len(output):
        block = pool.ask(row(0, output[start:base], 4, start))
        assert list(block.tokens) == output[base : base + 4]
        start, base = base, base + 5


def test_rows_join_at_the_next_pass_and_leave_when_their_draft_is_done(llama: Decoder) -> None:
    pool = Pool(llama)
    pool.submit(row(1, text(5, 1), 4), incarnation="large")
    first = pool.step()
    pool.submit(row(1, text(6, 2), 2), incarnation="small")
    passes = [first, *pool.run()]
    assert [(one.num_rows, one.num_targets) for one in passes if one] == [(1, 1), (2, 2), (2, 2), (1, 1)]
    assert [reply.incarnation for reply in pool.replies] == ["small", "large"]
    assert pool.worker.stats().num_mixed_passes == 2
    assert pool.worker.stats().num_drafted == 6
    assert pool.step() is None


def test_rows_that_are_done_with_the_same_pass_are_one_reply_in_the_order_of_the_request(llama: Decoder) -> None:
    pool = Pool(llama)
    pool.submit(row(3, text(4, 1), 2), row(1, text(5, 2), 2), round_id=5)
    pool.submit(row(2, text(6, 3), 2), incarnation="small", round_id=6)
    pool.step()
    assert pool.replies == []
    pool.run()
    answers = [(reply.round_id, [(one.sequence_id, len(one.tokens)) for one in reply.blocks]) for reply in pool.replies]
    assert answers == [(5, [(3, 2), (1, 2)]), (6, [(2, 2)])]


def test_a_pass_hands_over_the_rows_that_it_finished_and_refused_ones_do_not_wait_for_any(llama: Decoder) -> None:
    pool = Pool(llama)
    pool.submit(row(1, text(4, 1), 3), row(2, text(5, 2), 1), row(9, text(2), 1, start=7), round_id=5)
    assert [block.status for block in pool.blocks(5).values()] == [DraftStatus.NEED_CONTEXT]
    pool.run()
    assert [[(one.sequence_id, len(one.tokens)) for one in reply.blocks] for reply in pool.replies] == [
        [(9, 0)],
        [(2, 1)],
        [(1, 3)],
    ]
    assert {reply.round_id for reply in pool.replies} == {5}


def test_the_long_context_of_one_row_does_not_hold_up_the_others_of_its_request(llama: Decoder) -> None:
    pool, tokens = Pool(llama, PoolLimits(prefill_tokens=16)), text(200, 1)
    pool.clock.now += 1
    pool.submit(row(1, tokens, 2), row(2, text(5, 2), 3))
    pool.clock.now += 0.25
    for _ in range(3):
        pool.step()
    assert [(reply.wait_ms, len(reply.blocks)) for reply in pool.replies] == [(pytest.approx(250), 1)]
    assert pool.blocks()[2].tokens == expected(llama, text(5, 2), 3)
    pool.run()
    assert pool.blocks()[1].tokens == expected(llama, tokens, 2)
    assert [reply.wait_ms for reply in pool.replies] == [pytest.approx(250)] * 2


def test_the_counts_tell_rows_and_time_of_passes_what_was_read_and_who_went_without(llama: Decoder) -> None:
    pool = Pool(llama, PoolLimits(max_rows=1, max_ride=8, idle_s=0.0, ahead=1))
    pool.worker.submit(DraftRequest("large", 0, DEEP, (row(1, text(30), 2),), deadline_ms=1e3), pool.replies.append)
    passes = pool.run()
    pool.ask(row(2, text(5, 2), 2))
    stats = pool.worker.stats()
    assert pool.replies[0].blocks[0].status is DraftStatus.NOT_YET
    assert (stats.num_not_yet, stats.num_evicted) == (1, 1)
    assert (stats.num_passes, stats.num_rows) == (len(passes) + 2, len(passes) + 2)
    assert (stats.num_read, stats.pass_ms) == (29 + 5, 0.0), "the clock stands still"


def test_a_request_without_rows_is_answered_at_once(llama: Decoder) -> None:
    pool = Pool(llama)
    pool.submit(round_id=3)
    assert pool.replies == [DraftReply("large", 3, ())]


def test_an_unknown_sequence_needs_its_context_and_is_drafted_for_once_it_has_it(llama: Decoder) -> None:
    pool, tokens = Pool(llama), text(12)
    assert pool.ask(row(1, tokens[8:], 2, start=8)).status is DraftStatus.NEED_CONTEXT
    assert pool.worker.stats().num_sequences == 0
    assert pool.ask(row(1, tokens, 2)).tokens == expected(llama, tokens, 2)
    assert pool.ask(row(1, [], 3, start=12)).tokens == expected(llama, tokens, 3)
    assert pool.ask(row(1, [7], 3, start=14)).status is DraftStatus.NEED_CONTEXT


def test_context_is_handed_over_without_a_draft_and_settled_in_chunks_of_the_budget(llama: Decoder) -> None:
    pool, tokens = Pool(llama, PoolLimits(prefill_tokens=16)), text(50)
    pool.submit(row(1, tokens, 0))
    assert pool.replies[0].blocks[0].status is DraftStatus.OK
    assert [one.num_prefill_tokens for one in pool.run()] == [16, 16, 16, 1]
    pool.submit(row(1, [3], 2, start=50))
    assert [one.num_prefill_tokens for one in pool.run()] == [0]
    assert pool.replies[1].blocks[0].tokens == expected(llama, [*tokens, 3], 2)


def test_decode_rows_are_in_every_pass_beside_a_long_prefill(llama: Decoder) -> None:
    pool = Pool(llama, PoolLimits(prefill_tokens=40))
    pool.submit(row(1, text(200, 1), 1), incarnation="large")
    pool.submit(row(1, text(5, 2), 4), incarnation="small")
    passes = pool.run()
    assert [one.num_rows for one in passes] == [2, 2, 2, 2, 1]
    assert [one.num_prefill_tokens for one in passes] == [40, 40, 40, 40, 39]
    assert [reply.incarnation for reply in pool.replies] == ["small", "large"]


def test_going_deeper_settles_a_long_context_in_chunks_first(llama: Decoder) -> None:
    pool, tokens = Pool(llama, PoolLimits(prefill_tokens=64, max_ride=8)), text(100)
    pool.ask(row(1, tokens, 2), depth=SHALLOW)
    pool.submit(row(1, [5], 2, start=100), depth=DEEP)
    assert [one.num_prefill_tokens for one in pool.run()] == [64, 36, 0]
    assert pool.replies[-1].blocks[0].tokens == expected(llama, [*tokens, 5], 2)


def test_a_newer_message_replaces_the_one_that_is_being_drafted(llama: Decoder) -> None:
    pool, tokens = Pool(llama), text(9)
    pool.submit(row(1, tokens, 8), row(2, text(4), 2), round_id=1)
    pool.step()
    pool.submit(row(1, [4], 2, start=9), round_id=2)
    pool.run()
    assert pool.blocks(1)[1].tokens == expected(llama, tokens, 1)
    assert len(pool.blocks(1)[2].tokens) == 2
    assert pool.blocks(2)[1].tokens == expected(llama, [*tokens, 4], 2)


def test_a_sequence_that_is_closed_in_mid_draft_leaves_nothing_and_the_others_are_answered(llama: Decoder) -> None:
    pool, tokens = Pool(llama), text(9)
    pool.submit(row(1, tokens, 8), row(2, text(4), 4), round_id=1)
    pool.step()
    pool.worker.close("large", [1])
    pool.worker.check()
    assert pool.blocks(1)[1].tokens == expected(llama, tokens, 1), "as far as it got"
    pool.run()
    assert pool.blocks(1)[2].tokens == expected(llama, text(4), 4)
    assert pool.worker.stats().num_sequences == 1
    pool.worker.close("large", [2])
    stats = pool.worker.stats()
    assert (stats.num_sequences, stats.num_free_pages) == (0, stats.num_pages)


def test_rows_replaced_by_one_message_are_one_reply(llama: Decoder) -> None:
    pool = Pool(llama)
    pool.submit(row(1, text(9), 8), row(2, text(4), 8), round_id=1)
    pool.step()
    pool.submit(row(1, [4], 2, start=9), row(2, [4], 2, start=4), round_id=2)
    assert [(reply.round_id, len(reply.blocks)) for reply in pool.replies] == [(1, 2)]


def test_the_sampling_of_the_last_message_counts(llama: Decoder) -> None:
    pool, tokens, sampled = Pool(llama), text(9), SamplingParams(temperature=1.0, seed=3)
    pool.ask(row(1, tokens, 2))
    block = pool.ask(DraftRow(1, 9, (), 4, sampled))
    assert block.tokens == tuple(token for token, _ in draft_from_scratch(llama, tokens, 4, DEEP, sampled))
    assert block.tokens != expected(llama, tokens, 4)


def test_a_reply_tells_how_long_its_request_waited_for_its_first_pass(llama: Decoder) -> None:
    pool = Pool(llama)
    pool.submit(row(1, text(4), 2))
    pool.clock.now += 0.25
    pool.step()
    pool.clock.now += 5
    pool.run()
    assert pool.replies[0].wait_ms == pytest.approx(250)


def test_the_mean_wait_follows_the_load_and_fades_when_it_is_gone(llama: Decoder) -> None:
    pool = Pool(llama)
    for sequence_id in range(20):
        pool.submit(row(sequence_id, text(4), 1))
    pool.clock.now += 0.3
    pool.run()
    busy = pool.worker.stats().wait_ms
    assert busy == pytest.approx(300)
    pool.clock.now += WAIT_HALF_LIFE_S
    assert pool.worker.stats().wait_ms == pytest.approx(busy / 2)
    pool.clock.now += 3600
    assert pool.worker.stats().wait_ms < 1e-6
    pool.submit(row(30, text(4), 1))
    pool.clock.now += 0.01
    pool.run()
    assert pool.worker.stats().wait_ms == pytest.approx(10)


def test_one_request_hardly_moves_the_mean_wait_of_many() -> None:
    wait = MeanWait()
    for _ in range(100):
        wait.add(10.0, now=1.0)
    wait.add(110.0, now=1.0)
    assert wait.at(1.0) == pytest.approx(20.0)


def test_a_failed_pass_is_answered_empty_and_forgotten_and_the_worker_goes_on(
    llama: Decoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(rows: list[PassRow]) -> None:
        raise RuntimeError("out of memory")

    pool, tokens = Pool(llama), text(6)
    pool.submit(row(1, tokens, 2), row(2, tokens, 0))
    with monkeypatch.context() as patch:
        patch.setattr(pool.drafter, "run", fail)
        assert pool.step() is not None
    assert [(block.status, block.tokens) for block in pool.blocks().values()] == [(DraftStatus.OK, ())] * 2
    assert pool.worker.stats().num_free_pages == pool.worker.stats().num_pages
    assert "a pass of 2 rows failed" in caplog.text
    assert pool.ask(row(1, [], 2, start=6)).status is DraftStatus.NEED_CONTEXT
    assert pool.ask(row(1, tokens, 2)).tokens == expected(llama, tokens, 2)


def test_an_answer_that_cannot_be_handed_over_hurts_nobody_else(llama: Decoder) -> None:
    def gone(reply: DraftReply) -> None:
        raise ConnectionError("stream closed")

    pool = Pool(llama)
    pool.worker.submit(DraftRequest("large", 0, DEEP, (row(1, text(4), 1),)), gone)
    assert len(pool.ask(row(1, text(4), 2), incarnation="small").tokens) == 2


def test_nothing_that_holds_tokens_shows_them() -> None:
    tokens = [98765, 98766]
    pick, cached = (
        Pick(98765, 0.5),
        CachedTokens(("large", 1), 1, DEEP, GREEDY, 0.0, tokens, 1, {1: Pick(98766, 0.5)}),
    )
    answer = Answer(
        PendingRequest(DraftRequest("large", 0, DEEP, (row(1, tokens, 2),)), print, 0.0), 0, row(1, tokens, 2)
    )
    work = Row(cached=cached, length=2, priority=Priority.DRAFT, sink=answer, picks=[pick])
    for one in (pick, cached, answer, work, PassRow(1, tokens, 2, DEEP, GREEDY)):
        assert "9876" not in repr(one)


def test_the_pool_describes_its_drafter(llama: Decoder) -> None:
    description = Pool(llama).worker.describe()
    assert (description.exits, description.max_positions, description.vocab_size) == ((1, 2, 4), 256, 160)
