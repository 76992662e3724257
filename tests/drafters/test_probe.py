"""Probes against every exit asked from scratch, and drafts that do not mind that they were told of."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from drafters.nested import NestedDrafter, PassRow
from drafters.probe import LOGIT_ROWS, ProbeRow
from drafters.residents import PoolLimits
from model.decoder import Decoder
from protocol.draft import DraftStatus, Probe
from protocol.plan import DepthRule
from protocol.request import SamplingParams
from tests.drafters.pool import DEEP, EXITS, GREEDY, RULES, SHALLOW, Pool, RandomTarget, expected, row, same_probe, text
from tests.reference.drafting import probe_from_scratch
from tests.sizes import quick

SAMPLED = SamplingParams(temperature=0.8, top_p=0.95, seed=2**64 - 1)


def nothing(base_length: int) -> Probe:
    return Probe(base_length, ((),) * 3, ((),) * 3)


@pytest.mark.parametrize("seed", quick(range(12), 3))
def test_probes_say_what_every_exit_says_from_scratch_and_drafts_stay_as_they_are_without_them(
    llama: Decoder, seed: int
) -> None:
    """Depths, cascades, floors, rejections, closes and prefills at random; rows that only hand over, too."""
    rng = random.Random(seed)
    limits = PoolLimits(prefill_tokens=rng.choice([3, 8, 64]), max_ride=rng.choice([2, 8]), ahead=rng.choice([1, 3, 8]))
    pool = Pool(llama, limits, num_pages=512, page_size=rng.choice([1, 2]))
    targets = [RandomTarget(pool, llama, name, rng, probe_share=0.4) for name in ("large", "small")]
    for _ in range(80):
        for target in targets:
            target.take_reply()
            if target.waiting is None and rng.random() < 0.5:
                target.ask(rng.choice(RULES))
                pool.worker.check()
            elif rng.random() < 0.01:
                target.close(rng.randrange(3))
        pool.step()
    pool.run()
    for target in targets:
        target.take_reply()
        assert target.waiting is None
        assert min(target.num_told[True], target.num_told[False]) > 0
        assert not target.num_refused[DraftStatus.BUSY]


@pytest.mark.parametrize("seed", quick(range(6), 2))
def test_what_was_committed_before_an_eviction_is_not_told_again(llama: Decoder, seed: int) -> None:
    """Room for about half of the six sequences, each of which may be evicted as soon as it is idle."""
    rng = random.Random(seed)
    pool = Pool(llama, PoolLimits(prefill_tokens=16, idle_s=0.0), num_pages=16, page_size=8)
    targets = [RandomTarget(pool, llama, name, rng, probe_share=0.6) for name in ("large", "small")]
    for _ in range(60):
        for target in targets:
            target.take_reply()
            if target.waiting is None and rng.random() < 0.5:
                target.ask(rng.choice(RULES))
                pool.worker.check()
        pool.step()
    pool.run()
    for target in targets:
        target.take_reply()
        assert sum(target.num_told.values()) > 5
        assert target.num_refused[DraftStatus.NEED_CONTEXT] > 2


def test_a_pass_of_probes_tells_of_more_tokens_than_have_logits_at_a_time(llama: Decoder) -> None:
    drafter = NestedDrafter(llama, EXITS, num_pages=32, page_size=8)
    tokens, starts = [text(60, 1), text(5, 2), text(70, 3)], (20, 1, 30)
    sampling = [GREEDY, SAMPLED, replace(SAMPLED, seed=7)]
    for sequence, (own, start) in enumerate(zip(tokens, starts, strict=True)):
        drafter.open(sequence)
        drafter.ledger.reserve(sequence, len(own))
        if start > 1:
            drafter.run([PassRow(sequence, own[: start - 1], start - 1, start - 1, DEEP, sampling[sequence])])
    rows = [ProbeRow(one, starts[one], own[starts[one] - 1 :], sampling[one]) for one, own in enumerate(tokens)]
    assert sum(row.num_told for row in rows) > LOGIT_ROWS
    for probe, own, start, params in zip(drafter.probe(rows), tokens, starts, sampling, strict=True):
        assert same_probe(probe, probe_from_scratch(llama, own, start, EXITS, params))
    assert [drafter.written(one) for one in range(3)] == [drafter.settled(one, DEEP) for one in range(3)] == [59, 4, 69]
    drafter.check()


def test_a_context_that_is_not_settled_cannot_be_probed(llama: Decoder) -> None:
    drafter = NestedDrafter(llama, EXITS, num_pages=8, page_size=8)
    drafter.open(0)
    drafter.ledger.reserve(0, 12)
    drafter.run([PassRow(0, text(8), 8, 8, SHALLOW, GREEDY)])
    with pytest.raises(AssertionError, match="context below a probe is missing"):
        drafter.probe([ProbeRow(0, 9, text(12)[8:], GREEDY)])


def test_a_prompt_is_not_told_of_and_a_probe_without_news_costs_no_pass(llama: Decoder) -> None:
    pool, tokens = Pool(llama), text(9)
    pool.submit(row(1, tokens, 0, probe=True))
    assert pool.blocks()[1].probe == nothing(9)
    pool.run()
    pool.submit(row(1, [], 2, start=9, probe=True), round_id=1)
    assert [(one.num_rows, one.num_prefill_tokens) for one in pool.run()] == [(1, 0)] * 2
    assert pool.blocks(1)[1].probe == nothing(9)
    assert pool.blocks(1)[1].tokens == expected(llama, tokens, 2)


def test_what_is_told_of_is_what_came_since_the_last_probe_whatever_messages_brought_it(llama: Decoder) -> None:
    pool, tokens = Pool(llama), text(20)
    pool.ask(row(1, tokens[:6], 3))
    pool.ask(row(1, tokens[6:8], 3, start=6))
    pool.ask(row(1, tokens[8:9], 0, start=8), depth=SHALLOW)
    block = pool.ask(row(1, tokens[9:12], 3, start=9, probe=True), depth=SHALLOW)
    assert same_probe(block.probe, probe_from_scratch(llama, tokens[:12], 6, EXITS, GREEDY))
    assert block.tokens == expected(llama, tokens[:12], 3, SHALLOW)
    block = pool.ask(row(1, tokens[12:15], 0, start=12, probe=True))
    assert same_probe(block.probe, probe_from_scratch(llama, tokens[:15], 12, EXITS, GREEDY))
    assert block.tokens == ()


def test_with_drafting_off_a_probe_takes_one_pass_and_tells_of_the_newest_tokens(llama: Decoder) -> None:
    pool, tokens = Pool(llama, PoolLimits(probe_tokens=10)), text(60)
    pool.ask(row(1, tokens[:20], 0))
    pool.submit(row(1, tokens[20:25], 0, start=20, probe=True), round_id=1)
    assert pool.blocks(1) == {}
    (stats,) = pool.run()
    assert (stats.num_rows, stats.num_targets, stats.num_prefill_tokens, stats.num_exited) == (1, 1, 5, (0, 0, 0))
    assert same_probe(pool.blocks(1)[1].probe, probe_from_scratch(llama, tokens[:25], 20, EXITS, GREEDY))
    block = pool.ask(row(1, tokens[25:], 0, start=25, probe=True))
    assert same_probe(block.probe, probe_from_scratch(llama, tokens, 50, EXITS, GREEDY))
    assert pool.ask(row(1, [], 4, start=60)).tokens == expected(llama, tokens, 4)


def test_a_context_that_went_no_deeper_than_a_shallow_exit_is_settled_in_chunks_before_its_probe(
    llama: Decoder,
) -> None:
    pool, tokens = Pool(llama, PoolLimits(prefill_tokens=16, ahead=1)), text(50)
    pool.ask(row(1, tokens[:40], 0), depth=SHALLOW)
    pool.submit(row(1, tokens[40:], 2, start=40, probe=True), depth=SHALLOW, round_id=1)
    passes = pool.run()
    assert [one.num_prefill_tokens for one in passes] == [16, 16, 7, 10, 0, 0]
    assert [one.num_exited[0] for one in passes] == [0, 0, 0, 0, 1, 1]
    block = pool.blocks(1)[1]
    assert same_probe(block.probe, probe_from_scratch(llama, tokens, 40, EXITS, GREEDY))
    assert block.tokens == expected(llama, tokens, 2, SHALLOW)


def test_a_probe_keeps_to_the_budget_of_a_pass(llama: Decoder) -> None:
    pool, tokens = Pool(llama, PoolLimits(prefill_tokens=8, max_ride=2)), text(40)
    pool.submit(*(row(one, tokens[:4], 0) for one in range(4)))
    pool.run()
    pool.submit(*(row(one, tokens[4:], 0, start=4, probe=True) for one in range(3)), round_id=1)
    pool.submit(row(3, tokens[4:7], 0, start=4, probe=True), round_id=2)
    assert max(one.num_prefill_tokens for one in pool.run()) == 8
    for one in range(3):
        assert same_probe(pool.blocks(1)[one].probe, probe_from_scratch(llama, tokens, 32, EXITS, GREEDY))
    assert same_probe(pool.blocks(2)[3].probe, probe_from_scratch(llama, tokens[:7], 4, EXITS, GREEDY))


def test_probes_of_several_targets_are_one_pass_and_go_before_the_drafts(llama: Decoder) -> None:
    pool, tokens = Pool(llama), text(12)
    for name in ("large", "small"):
        pool.ask(row(1, tokens[:9], 0), incarnation=name)
    pool.submit(row(2, tokens, 2), incarnation="large")
    for name in ("large", "small"):
        pool.submit(row(1, tokens[9:], 2, start=9, probe=True), incarnation=name)
    stats = [(one.num_rows, one.num_targets, one.num_prefill_tokens, sum(one.num_exited)) for one in pool.run()]
    assert stats == [(2, 2, 6, 0), (3, 2, 0, 3), (3, 2, 0, 3)]
    assert pool.worker.stats().num_mixed_passes == 3


def test_drafts_have_every_other_pass_while_probes_go_on(llama: Decoder) -> None:
    pool, tokens = Pool(llama), text(9)
    for one in range(7):
        pool.ask(row(one, tokens, 0))
    pool.submit(row(6, [], 8, start=9))
    gained = []
    for one in range(6):  # a probe is due before every pass
        pool.submit(row(one, [7, 8], 0, start=9, probe=True), round_id=1)
        stats = pool.step()
        assert stats is not None
        gained.append(sum(stats.num_exited))
    assert gained == [0, 1, 0, 1, 0, 1]


def test_a_pass_of_probes_that_fails_is_answered_without_them_and_its_sequences_are_forgotten(
    llama: Decoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(rows: list[ProbeRow]) -> None:
        raise RuntimeError("out of memory")

    pool, tokens = Pool(llama), text(9)
    pool.ask(row(1, tokens, 0))
    pool.submit(row(1, [5], 3, start=9, probe=True), row(2, tokens, 1), round_id=1)
    with monkeypatch.context() as patch:
        patch.setattr(pool.drafter, "probe", fail)
        pool.run()
    block = pool.blocks(1)[1]
    assert (block.status, block.tokens, block.probe) == (DraftStatus.OK, (), None)
    assert pool.blocks(1)[2].tokens == expected(llama, tokens, 1)
    assert "a pass of 1 rows failed" in caplog.text
    assert pool.ask(row(1, [6], 3, start=10)).status is DraftStatus.NEED_CONTEXT


def test_a_row_that_is_closed_or_replaced_before_its_probe_is_answered_without_one(llama: Decoder) -> None:
    pool, tokens = Pool(llama), text(14)
    for one in (1, 2):
        pool.ask(row(one, tokens[:9], 0))
    pool.submit(*(row(one, tokens[9:11], 3, start=9, probe=True) for one in (1, 2)), round_id=1)
    pool.worker.close("large", [1])
    pool.submit(row(2, tokens[11:], 3, start=11, probe=True), round_id=2)
    assert [(block.status, block.tokens, block.probe) for block in pool.blocks(1).values()] == [
        (DraftStatus.OK, (), None)
    ] * 2
    pool.run()
    assert same_probe(pool.blocks(2)[2].probe, probe_from_scratch(llama, tokens, 9, EXITS, GREEDY))
    assert pool.blocks(2)[2].tokens == expected(llama, tokens, 3)


def test_a_draft_that_is_replaced_behind_its_probe_is_answered_with_it_and_nothing_is_told_twice(
    llama: Decoder,
) -> None:
    pool, tokens = Pool(llama), text(14)
    pool.ask(row(1, tokens[:9], 0))
    pool.submit(row(1, tokens[9:11], 5, start=9, probe=True), round_id=1)
    pool.step()
    pool.step()
    pool.submit(row(1, tokens[11:], 2, start=11, probe=True), round_id=2)
    pool.run()
    assert same_probe(pool.blocks(1)[1].probe, probe_from_scratch(llama, tokens[:11], 9, EXITS, GREEDY))
    assert len(pool.blocks(1)[1].tokens) == 1
    assert same_probe(pool.blocks(2)[1].probe, probe_from_scratch(llama, tokens, 11, EXITS, GREEDY))


def test_a_probe_has_the_noise_and_the_filters_of_its_sequence(llama: Decoder) -> None:
    pool, tokens = Pool(llama), text(12)
    sampled = replace(row(1, tokens[:8], 0), sampling=SAMPLED)
    pool.ask(sampled)
    drafted = pool.ask(replace(row(1, [], 4, start=8), sampling=SAMPLED), depth=DepthRule((2,))).tokens
    block = pool.ask(replace(row(1, drafted, 0, start=8, probe=True), sampling=SAMPLED))
    assert block.probe is not None
    assert block.probe.matches[1] == (True,) * 4
    assert same_probe(block.probe, probe_from_scratch(llama, [*tokens[:8], *drafted], 8, EXITS, SAMPLED))
