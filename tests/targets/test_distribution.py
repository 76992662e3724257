"""The whole speculative loop draws from the target's filtered distribution, drafts accepted and refused."""

import itertools
from collections import Counter

import pytest
import torch
from scipy import stats
from transformers import LlamaConfig, LlamaForCausalLM

from model.sampling import filter_logits
from protocol.draft import DraftBlock, DraftReply, DraftStatus
from protocol.request import GenerateRequest, SamplingParams, StopRules
from router.policy import Fixed
from targets import step
from targets.engine import Engine, EngineConfig
from targets.model import ForwardRow, load_target
from tests.reference.engine import run_all

VOCAB = 6
PROMPT = (1, 4, 2)
SETTINGS = {"temperature": 0.9, "top_k": 5, "top_p": 0.95}
NUM_DRAWS = 4000


class ConstantDrafter:
    """Always proposes the same two tokens: right for some seeds, wrong for others."""

    def open(self, request):
        pass

    def draft(self, request):
        blocks = [
            DraftBlock(
                r.sequence_id,
                r.base_length,
                DraftStatus.OK,
                (3, 5)[: r.length],
                (0.5, 0.5)[: r.length],
            )
            for r in request.rows
        ]
        return DraftReply(request.incarnation, request.round_id, tuple(blocks))

    def close(self, sequence_ids):
        pass


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, initializer_range=0.5, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    directory = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(directory)
    return lambda: load_target(directory, dtype=torch.float32, num_positions=4096, page_size=4)


def exact_joint(model) -> dict[tuple[int, ...], float]:
    """Probability of every three-token text, by enumeration."""
    params = [SamplingParams(**SETTINGS)]
    probabilities = {(): 1.0}
    for _ in range(3):
        longer = {}
        for text, probability in probabilities.items():
            model.ledger.open(0)
            model.ledger.reserve(0, 8)
            logits = model.forward([ForwardRow(0, 0, [*PROMPT, *text], 1)])
            model.ledger.free(0)
            row = filter_logits(logits, params).double().softmax(-1)[0].tolist()
            longer |= {(*text, v): probability * row[v] for v in range(VOCAB)}
        probabilities = longer
    return probabilities


def drawn(model) -> tuple[Counter, Engine]:
    requests = [
        GenerateRequest(str(i), PROMPT, SamplingParams(**SETTINGS, seed=i), StopRules(3)) for i in range(NUM_DRAWS)
    ]
    config = EngineConfig(max_batch=128, max_queue=NUM_DRAWS)
    engine = Engine(model, Fixed(1, 2), ConstantDrafter(), config)
    return Counter(map(tuple, run_all(engine, requests).tokens.values())), engine


def smallest_p_value(counts: Counter, probabilities: dict[tuple[int, ...], float]) -> float:
    """Exact binomial test of every text, Bonferroni over texts; an impossible text that was drawn gives 0."""
    assert sum(probabilities.values()) == pytest.approx(1)
    tests = (stats.binomtest(counts[text], NUM_DRAWS, min(p, 1.0)).pvalue for text, p in probabilities.items())
    return min(1.0, min(tests) * len(probabilities))


def test_speculative_sampling_draws_from_the_joint_distribution_of_the_target(tiny):
    counts, engine = drawn(tiny())
    totals = engine.stats()
    assert 0 < totals.num_accepted < totals.num_proposed
    assert smallest_p_value(counts, exact_joint(tiny())) > 1e-3


def test_accepting_a_draft_that_is_not_the_targets_pick_is_caught(tiny, monkeypatch):
    """Negative control: a rule that takes one wrong token in eight."""
    lenient = itertools.cycle([False] * 7 + [True])

    def rule(picks, draft):
        accepted = (
            len(draft)
            if next(lenient)
            else sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(picks, draft, strict=False)))
        )
        picks[:accepted] = draft[:accepted]
        return accepted

    monkeypatch.setattr(step, "num_accepted", rule)
    counts, _ = drawn(tiny())
    assert smallest_p_value(counts, exact_joint(tiny())) < 1e-9
