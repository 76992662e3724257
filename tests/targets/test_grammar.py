"""Grammars under speculation: the text is the plain loop's with the same grammar, and the grammar holds."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from llguidance import LLMatcher

from model.load import WeightFormat, load_decoder
from protocol.errors import InvalidRequest
from protocol.plan import Speculation
from protocol.record import Origin
from protocol.request import FinishReason
from router.policy import Fixed, Off
from targets.engine import Engine, EngineConfig
from targets.own_client import OwnDraftClient
from tests.reference.engine import ScriptedDrafter, plain_texts, run_all
from tests.targets.shaped import EOS, EXAMPLES, SCHEMAS, TOKENIZER, of_schema, shaped_requests
from tests.targets.test_engine import Randomised


@pytest.mark.parametrize("weights", [WeightFormat.STORED, WeightFormat.INT8])
@pytest.mark.parametrize("seed", range(4))
def test_a_drafter_on_the_targets_kv_hears_of_the_grammar_and_is_mostly_right(load_shaped, shaped_llama, seed, weights):
    asked, model = shaped_requests(seed), load_shaped()
    texts = plain_texts(load_shaped(), asked)
    own = OwnDraftClient(model, load_decoder(shaped_llama, dtype=torch.float32, weights=weights))
    result = run_all(Engine(model, Fixed(2, 4), own, EngineConfig(max_batch=4)), asked)
    assert result.tokens == texts
    if weights is WeightFormat.STORED:  # the same weights under the same grammar
        assert all(stats.accepted == stats.drafted > 0 for stats in result.stats.values())


@pytest.mark.parametrize("seed", range(6))
def test_forced_tokens_need_no_drafter_and_are_always_right(load_shaped, seed):
    asked = [request for request in shaped_requests(seed, count=15) if request.grammar]
    texts = plain_texts(load_shaped(), asked)
    small = load_shaped(num_positions=random.Random(seed).choice([160, 4096]), page_size=4)
    engine = Engine(small, Off(), config=EngineConfig(max_batch=4))
    result = run_all(engine, asked)
    assert result.tokens == texts
    assert sum(stats.drafted for stats in result.stats.values()) > 0
    assert all(stats.accepted == stats.drafted for stats in result.stats.values())
    forced = [row for record in engine.last_rounds() for row in record.rows if row.num_proposed]
    assert {(row.origin, row.num_drafted) for row in forced} == {(Origin.FORCED, 0)}


def test_nothing_is_proposed_to_a_request_that_is_not_to_be_speculated_for(load_shaped):
    asked = [replace(one, speculation=Speculation(0, 0)) for one in shaped_requests(1)]
    result = run_all(Engine(load_shaped(), Fixed(1, 4), config=EngineConfig(max_batch=4)), asked)
    assert result.tokens == plain_texts(load_shaped(), asked)
    assert not any(stats.drafted for stats in result.stats.values())


@pytest.mark.parametrize("seed", range(20))
def test_a_mended_draft_is_what_the_grammar_allows_of_it_and_what_that_forces(grammars, seed):
    rng = random.Random(seed)
    grammar = of_schema(SCHEMAS[seed % 3])
    text = TOKENIZER.encode(EXAMPLES[seed % 3], add_special_tokens=False)
    wandering = grammars.constraint(grammar)
    for _ in range(30):
        at, room = rng.randint(0, len(text)), rng.randint(0, 6)
        draft = [token if rng.random() < 0.7 else rng.randrange(len(TOKENIZER)) for token in text[at : at + room]]
        tokens, num_kept = wandering.mended(text[:at], draft, room)
        assert len(tokens) <= room
        assert list(tokens[:num_kept]) == draft[:num_kept]
        masks = grammars.constraint(grammar).masks(text[:at], tokens)
        allowed = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little")
        assert all(allowed[place, token] for place, token in enumerate(tokens))
        if num_kept < len(draft):
            assert not allowed[num_kept, draft[num_kept]]
        for place in range(num_kept, len(tokens)):
            assert allowed[place].sum() == 1


@pytest.mark.parametrize("seed", range(6))
def test_the_text_is_the_plain_loops_whatever_is_drafted_and_however_little_memory_there_is(load_shaped, seed):
    asked = shaped_requests(seed)
    texts = plain_texts(load_shaped(), asked)
    small = load_shaped(num_positions=random.Random(seed).choice([160, 4096]), page_size=4)
    drafter = ScriptedDrafter(asked, texts, seed, accuracy=0.6, trouble=0.1)
    result = run_all(Engine(small, Randomised(seed, 6), drafter, EngineConfig(max_batch=4, prefill_chunk=7)), asked)
    assert result.tokens == texts
    assert sum(stats.accepted for stats in result.stats.values()) > 0


def test_what_ends_by_itself_is_what_the_grammar_says(load_shaped):
    asked = [request for seed in range(5) for request in shaped_requests(seed, max_tokens=200) if request.grammar]
    asked = [replace(request, request_id=str(index)) for index, request in enumerate(asked)]
    result = run_all(Engine(load_shaped(), Fixed(1, 2), config=EngineConfig(max_batch=8)), asked)
    ended = [request for request in asked if result.reasons[request.request_id] is FinishReason.STOP]
    assert len(ended) > len(asked) // 2
    for request in ended:
        text = TOKENIZER.decode([token for token in result.tokens[request.request_id] if token != EOS])
        if request.grammar in map(of_schema, SCHEMAS):
            json.loads(text)
        else:
            assert set(text[:-1]) == {"a", "b"}
            assert text.endswith("!")


def test_a_text_without_a_grammar_is_what_it_was_beside_those_that_have_one(load_shaped):
    asked = enumerate(shaped_requests(3))
    mixed = [replace(request, grammar=request.grammar if index % 2 else "") for index, request in asked]
    free = [request for request in mixed if not request.grammar]
    texts = run_all(Engine(load_shaped(), Fixed(1, 2)), mixed).tokens
    assert plain_texts(load_shaped(), free) == {request.request_id: texts[request.request_id] for request in free}


@pytest.mark.parametrize("seed", range(20))
def test_masks_do_not_depend_on_where_the_matcher_was_before(grammars, seed):
    rng = random.Random(seed)
    grammar = of_schema(SCHEMAS[seed % 3])
    text = TOKENIZER.encode(EXAMPLES[seed % 3], add_special_tokens=False)
    wandering = grammars.constraint(grammar)
    for _ in range(30):
        at = rng.randint(0, len(text))
        draft = [token if rng.random() < 0.7 else rng.randrange(len(TOKENIZER)) for token in text[at : at + 4]]
        found = wandering.masks(text[:at], draft)
        assert (found == grammars.constraint(grammar).masks(text[:at], draft)).all()
        assert len(found) == 1 + len(draft)


def test_a_grammar_that_is_none_or_that_no_tokenizer_can_read_is_refused(load_shaped):
    request = replace(shaped_requests(0)[0], grammar=LLMatcher.grammar_from_regex("("))
    with pytest.raises(InvalidRequest, match="does not compile"):
        Engine(load_shaped(), Fixed(1, 2)).submit(request, print)
    with pytest.raises(InvalidRequest, match="no tokenizer to read a grammar with"):
        Engine(replace(load_shaped(), grammars=None), Fixed(1, 2)).submit(shaped_requests(0)[0], print)


def test_behind_a_text_that_its_grammar_refuses_nothing_may_come_and_the_matcher_finds_back(grammars):
    text = TOKENIZER.encode(EXAMPLES[2], add_special_tokens=False)
    constraint, fresh = (grammars.constraint(of_schema(SCHEMAS[2])) for _ in range(2))
    foreign = next(token for token in range(3, len(TOKENIZER)) if token != text[0] and TOKENIZER.decode([token]) == "x")
    assert not constraint.masks([foreign], text).any()
    assert (constraint.masks(text[:1]) == fresh.masks(text[:1])).all()
