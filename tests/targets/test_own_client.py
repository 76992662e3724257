"""A target that drafts for itself over its own KV: the text is the plain loop's, whatever its other weights say."""

import random
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch

import targets.own_client
import targets.scoring
from model.load import WeightFormat, load_decoder
from model.logit_rules import count
from protocol.draft import DraftRequest, DraftRow
from protocol.errors import ConfigError
from protocol.logit_rules import NO_RULES
from protocol.request import SamplingParams
from router.policy import Fixed
from targets.engine import Engine, EngineConfig
from targets.model import ForwardRow
from targets.own_client import OwnDraftClient
from tests.model.families import EXECUTIONS, VOCAB, make_checkpoint
from tests.reference.engine import plain_texts, random_requests, run_all
from tests.reference.logit_rules import with_rules
from tests.targets.test_engine import Randomised

WHOLE = 4


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """Other weights of the same shape: it is hardly ever right."""
    return make_checkpoint("llama", tmp_path_factory.mktemp("own") / "llama", seed=1)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("seed", range(4))
def test_the_text_is_the_plain_loops_with_weights_that_are_never_or_mostly_right(
    load, llama, stranger, seed, execution
):
    requests = random_requests(seed, 9, VOCAB)
    page_size = random.Random(seed).choice([1, 16])
    for folder, weights in ((stranger, WeightFormat.STORED), (llama, WeightFormat.INT8)):
        model = load(page_size=page_size, execution=execution)
        own = OwnDraftClient(model, load_decoder(folder, dtype=torch.float32, execution=execution, weights=weights))
        config = EngineConfig(max_batch=random.Random(seed).choice([1, 3, 16]), prefill_chunk=7)
        result = run_all(Engine(model, Randomised(seed, 6), own, config), requests)
        assert result.tokens == plain_texts(load(execution=execution), requests)
        assert model.ledger.num_free == model.ledger.num_pages
        model.ledger.check()


def test_the_same_weights_are_always_right_with_nothing_read_twice(load, llama):
    requests, model = random_requests(5, 6, VOCAB), load()
    engine = Engine(model, Fixed(WHOLE, 3), OwnDraftClient(model, load_decoder(llama, dtype=torch.float32)))
    result = run_all(engine, requests)
    assert result.tokens == plain_texts(load(), requests)
    assert all(stats.accepted == stats.drafted for stats in result.stats.values())


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("seed", range(6))
def test_the_text_is_the_plain_loops_with_rules_that_the_drafter_knows(load, llama, stranger, seed, execution, caplog):
    requests = with_rules(random_requests(seed, 9, VOCAB, max_tokens=28), seed, VOCAB)
    texts = plain_texts(load(execution=execution), requests)
    for folder in (stranger, llama):
        model = load(num_positions=[4096, 128][seed % 2], page_size=4, execution=execution)
        own = OwnDraftClient(model, load_decoder(folder, dtype=torch.float32, execution=execution))
        config = EngineConfig(max_batch=random.Random(seed).choice([1, 3, 16]), prefill_chunk=7)
        assert run_all(Engine(model, Randomised(seed, 6), own, config), requests).tokens == texts
        model.ledger.check()
    assert "failed" not in caplog.text, "a drafter that raises is left out, and the text is right all the same"


@pytest.mark.parametrize("seed", range(6))
def test_the_same_weights_are_always_right_under_rules(load, llama, seed):
    """At every place of a draft: what it has drafted counts."""
    requests = with_rules(random_requests(seed, 9, VOCAB, max_tokens=28), seed, VOCAB)
    assert accepted(load, llama, requests) == 1


def test_rules_that_a_drafter_does_not_know_or_reads_late_cost_acceptance_and_no_text(load, llama, monkeypatch):
    requests = with_rules(random_requests(3, 9, VOCAB, max_tokens=28), 3, VOCAB)
    for name, fault in (
        ("adjust", lambda *_: None),
        ("count", lambda text, head: count(replace(text, tokens=()), head)),
    ):
        with monkeypatch.context() as planted:
            planted.setattr(targets.own_client, name, fault)
            assert accepted(load, llama, requests) < 0.9


def test_a_row_under_rules_is_counted_once_a_round_for_its_draft_and_once_where_it_is_verified(
    load, llama, monkeypatch
):
    requests = with_rules(random_requests(3, 9, VOCAB, max_tokens=28), 3, VOCAB)
    model, counts = load(), Counter()
    own = OwnDraftClient(model, load_decoder(llama, dtype=torch.float32))
    for place, name in ((targets.own_client, "count"), (targets.own_client, "adjust"), (targets.scoring, "count")):
        watched = f"{place.__name__}.{name}"
        monkeypatch.setattr(place, name, partial(counted, getattr(place, name), counts, watched))
    result = run_all(Engine(model, Fixed(WHOLE, 4), own), requests)
    ruled = [result.stats[request.request_id] for request in requests if request.rules != NO_RULES]
    rounds = sum(stats.rounds for stats in ruled)
    assert 0 < counts["targets.own_client.count"] <= rounds
    assert counts["targets.scoring.count"] <= rounds + len(ruled), "and once for its first token"
    assert counts["targets.own_client.adjust"] > 2 * rounds, "drafted tokens"


def counted(call, counts, name, *args):
    counts[name] += 1
    return call(*args)


def accepted(load, llama, requests):
    """The share of drafted tokens that were; the text is the plain loop's."""
    model = load()
    own = OwnDraftClient(model, load_decoder(llama, dtype=torch.float32))
    result = run_all(Engine(model, Fixed(WHOLE, 4), own), requests)
    assert result.tokens == plain_texts(load(), requests)
    drafted = sum(stats.drafted for stats in result.stats.values())
    return sum(stats.accepted for stats in result.stats.values()) / drafted


def test_text_survives_preemption_where_pages_are_short(load, stranger):
    requests = random_requests(7, 8, VOCAB)
    model = load(num_positions=96, page_size=4)
    engine = Engine(model, Randomised(7, 5), OwnDraftClient(model, load_decoder(stranger, dtype=torch.float32)))
    assert run_all(engine, requests).tokens == plain_texts(load(), requests)
    assert engine.stats().num_preempted > 0


def test_a_draft_leaves_the_kv_of_committed_tokens_as_it_was(load, stranger):
    model, tokens = load(), tuple(range(20, 40))
    model.ledger.open(3)
    assert model.ledger.reserve(3, 32)
    model.forward([ForwardRow(3, 0, tokens[:-1], 1)])
    held = torch.as_tensor(model.ledger.slots(3)[:19])
    before = [_at(model, layer, held) for layer in range(4)]
    own = OwnDraftClient(model, load_decoder(stranger, dtype=torch.float32))
    row = DraftRow(3, 0, tokens, 5, SamplingParams(temperature=0.0))
    (block,) = own.draft(DraftRequest("self", 1, WHOLE, (row,))).blocks
    assert (block.base_length, len(block.tokens)) == (20, 5)
    assert all(torch.equal(_at(model, layer, held), before[layer]) for layer in range(4))


def _at(model, layer, slots):
    """Keys and values, whose slots are the first axis in plain torch and the second in the kernels' layout."""
    both = torch.stack([model.kv.keys[layer], model.kv.values[layer]])
    return both.index_select(1 if both.shape[1] == 4096 else 2, slots)


class Broken:
    """A decoder whose kernels fail."""

    def __init__(self, decoder):
        self._decoder = decoder

    def roll_out(self, *_):
        raise RuntimeError("no such kernel")


def test_a_drafter_that_fails_costs_a_request_nothing(load, llama, caplog):
    requests, model = random_requests(1, 4, VOCAB), load()
    own = OwnDraftClient(model, load_decoder(llama, dtype=torch.float32))
    own.decoder = Broken(own.decoder)
    assert run_all(Engine(model, Fixed(WHOLE, 3), own), requests).tokens == plain_texts(load(), requests)
    assert "requests go on without it" in caplog.text


def test_fewer_layers_or_another_dtype_are_refused(load, llama):
    for options in ({"dtype": torch.float32, "num_layers": 2}, {"dtype": torch.bfloat16}):
        with pytest.raises(ConfigError, match="needs the target's layers, dtype"):
            OwnDraftClient(load(), load_decoder(llama, **options))
