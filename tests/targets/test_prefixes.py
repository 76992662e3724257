"""Prompts that begin alike are read once, and the text stays the plain loop's."""

import random

import pytest

from model.prefixes import page_keys
from protocol.request import GenerateRequest, SamplingParams, StopRules, TokenRun
from router.policy import Fixed, Off
from targets.engine import Engine, EngineConfig
from tests.model.families import EXECUTIONS, VOCAB
from tests.reference.engine import Collector, ScriptedDrafter, plain_texts, run_all
from tests.targets.test_engine import Randomised


def alike(seed: int, count: int, max_tokens: int = 12) -> list[GenerateRequest]:
    """Prompts with one of three beginnings of up to 60 tokens, cut anywhere, and ends of their own."""
    rng = random.Random(seed)
    beginnings = [[rng.randrange(VOCAB) for _ in range(60)] for _ in range(3)]
    requests = []
    for index in range(count):
        prompt = rng.choice(beginnings)[: rng.randint(1, 60)] + [rng.randrange(VOCAB) for _ in range(rng.randint(0, 9))]
        sampling = SamplingParams(temperature=0.8 * (index % 2), seed=rng.getrandbits(64))
        requests.append(GenerateRequest(str(index), tuple(prompt), sampling, StopRules(max_tokens)))
    return requests


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("seed", range(6))
def test_text_is_the_plain_loops_where_beginnings_are_adopted(load, seed, execution):
    requests = alike(seed, 24)
    texts = plain_texts(load(execution=execution), requests)
    rng = random.Random(seed)
    model = load(rng.choice([160, 4096]), page_size=rng.choice([1, 4, 16]), execution=execution)
    config = EngineConfig(max_batch=rng.choice([1, 3, 16]), prefill_chunk=rng.choice([7, 64]))
    drafter = ScriptedDrafter(requests, texts, seed, accuracy=0.7, trouble=0.1)
    engine = Engine(model, Randomised(seed, 5), drafter, config)
    assert run_all(engine, requests).tokens == texts
    assert engine.stats().num_adopted_tokens > 0
    assert model.ledger.num_free == model.ledger.num_pages
    model.ledger.check()


@pytest.mark.parametrize("max_batch", [1, 8])
def test_a_shared_beginning_is_run_once_one_after_another_or_all_at_once(load, max_batch):
    rng = random.Random(3)
    shared = tuple(rng.randrange(VOCAB) for _ in range(64))
    requests = [
        GenerateRequest(str(n), (*shared, n, n + 1), SamplingParams(temperature=0.0), StopRules(4)) for n in range(8)
    ]
    engine = Engine(load(), Off(), config=EngineConfig(max_batch=max_batch, prefill_chunk=64))
    assert run_all(engine, requests).tokens == plain_texts(load(), requests)
    stats = engine.stats()
    assert (stats.num_prefill_tokens, stats.num_adopted_tokens) == (64 + 8 * 2, 7 * 64)
    assert (stats.num_queried_tokens, stats.num_hit_tokens) == (8 * 66, 7 * 64)


def test_every_run_tells_how_much_of_its_prompt_was_not_read(load):
    engine, told = Engine(load(page_size=16), Off()), {}
    collector = Collector()

    def tell(run: TokenRun) -> None:
        told.setdefault(run.request_id, set()).add(run.num_cached)
        collector(run)

    with engine:
        for number in range(2):
            prompt = tuple(range(20, 60))
            engine.submit(GenerateRequest(str(number), prompt, SamplingParams(temperature=0.0), StopRules(4)), tell)
            collector.wait(number + 1)
    assert told == {"0": {0}, "1": {32}}, "two of the three pages are full"


def test_the_turns_of_a_chat_go_on_from_the_answers_before(load):
    model = load()
    engine = Engine(model, Off())
    chat = tuple(range(20, 60))
    num_read = []
    with engine:
        for turn in range(4):
            request = GenerateRequest(str(turn), chat, SamplingParams(temperature=0.0), StopRules(20))
            before = engine.stats().num_prefill_tokens
            (text,) = _finish(engine, request)
            num_read.append(engine.stats().num_prefill_tokens - before)
            chat = (*chat, *text, 7, 8, 9)
    assert num_read[0] == 40
    assert all(read <= 3 + 1 + 16 for read in num_read[1:]), "what is new, and a page that was not full"


def _finish(engine: Engine, request: GenerateRequest):
    collector = Collector()
    engine.submit(request, collector)
    collector.wait(1)
    return collector.tokens.values()


def test_a_sequence_that_is_preempted_goes_on_from_its_own_pages(load):
    requests = alike(5, 8, max_tokens=40)
    model = load(num_positions=160, page_size=4)
    engine = Engine(model, Fixed(1, 3), ScriptedDrafter(requests, plain_texts(load(), requests), 1))
    assert run_all(engine, requests).tokens == plain_texts(load(), requests)
    stats = engine.stats()
    assert stats.num_preempted > 0
    assert stats.num_adopted_tokens > stats.num_hit_tokens, "what a sequence finds of itself is no hit"
    assert stats.num_queried_tokens == sum(len(request.prompt_ids) for request in requests)
    assert sum(stats.queue_times.counts) == len(requests), "each waits once"


def test_keys_name_all_tokens_up_to_a_pages_end():
    tokens = list(range(20))
    whole = page_keys([], tokens, 4)
    assert len(whole) == len(set(whole)) == 5
    assert page_keys(whole[:2], tokens, 4) == whole
    assert page_keys([], tokens[:11], 4) == whole[:2]
    changed = page_keys([], [99, *tokens[1:]], 4)
    assert not set(changed) & set(whole), "a token at the beginning changes every key behind it"
