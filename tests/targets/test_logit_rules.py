"""Bias, penalties and min_tokens under speculation: the text is the plain loop's with the same rules."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import targets.model
import targets.passes
from model.config import DecoderConfig
from model.decoder import Decoder
from model.execution import Execution
from protocol.errors import InvalidRequest
from protocol.logit_rules import NO_RULES, LogitRules, Ruled
from protocol.request import FinishReason, GenerateRequest, SamplingParams, StopRules
from router.policy import Fixed, Off
from targets import plain
from targets.engine import Engine, EngineConfig
from targets.model import ForwardRow
from targets.scoring import Scoring, apply_rules, scoring
from tests.model.families import VOCAB
from tests.reference.engine import Collector, ScriptedDrafter, plain_texts, random_requests, run_all
from tests.reference.logit_rules import expected_logits, with_rules
from tests.targets.ahead import Connect, Whimsical, engine_of, has_given_back
from tests.targets.conftest import LoadTarget

DEPTH = 1


def some_requests(seed: int, count: int = 9) -> list[GenerateRequest]:
    return with_rules(random_requests(seed, count, VOCAB, max_tokens=28), seed, VOCAB)


def speculate(
    load: LoadTarget, requests: Sequence[GenerateRequest], texts: dict[str, list[int]], seed: int, **sizes: Any
) -> tuple[Collector, Engine]:
    """An engine whose drafts are right now and then, in batches and pages of some size."""
    rng = random.Random(seed)
    drafter = ScriptedDrafter(requests, texts, seed, accuracy=rng.choice([0.3, 0.7, 0.95, 1.0]), trouble=0.05)
    config = EngineConfig(max_batch=rng.choice([1, 3, 16]), prefill_chunk=rng.choice([7, 512]))
    engine = Engine(load(**sizes), Fixed(DEPTH, rng.choice([1, 3, 6])), drafter, config)
    return run_all(engine, requests), engine


@pytest.mark.parametrize("seed", range(24))
def test_the_text_is_the_plain_loops_with_the_same_rules(load: LoadTarget, seed: int) -> None:
    requests = some_requests(seed)
    texts = plain_texts(load(), requests)
    result, _ = speculate(load, requests, texts, seed)
    assert result.tokens == texts
    assert sum(stats.accepted for stats in result.stats.values()) > 0
    without = plain_texts(load(), [replace(request, rules=NO_RULES) for request in requests])
    assert sum(texts[name] != without[name] for name in texts) > 2, "the rules hardly matter"


@pytest.mark.parametrize("seed", range(8))
def test_it_is_where_sequences_are_preempted_and_computed_again(load: LoadTarget, seed: int) -> None:
    requests = some_requests(seed, count=12)
    texts = plain_texts(load(), requests)
    result, engine = speculate(load, requests, texts, 2 * seed + 1, num_positions=96, page_size=4)
    assert result.tokens == texts
    assert has_given_back(engine)


def test_some_of_those_are_preempted(load: LoadTarget) -> None:
    requests = some_requests(5, count=12)
    engine = Engine(load(num_positions=96, page_size=4), Off(), config=EngineConfig(max_batch=8))
    assert run_all(engine, requests).tokens == plain_texts(load(), requests)
    assert engine.stats().num_preempted > 0


@pytest.mark.parametrize("seed", range(6))
def test_it_is_where_the_pool_drafts_ahead_and_passes_stop_on_their_way(
    load: LoadTarget, drafter: Decoder, seed: int
) -> None:
    requests = some_requests(seed, count=6)
    engine = engine_of(load, Connect(drafter)(), Whimsical(seed), max_batch=4)
    assert run_all(engine, requests).tokens == plain_texts(load(), requests)
    assert engine.stats().num_accepted > 0


def test_it_is_in_plain_torch(load: LoadTarget) -> None:
    requests = some_requests(2)
    texts = plain_texts(load(execution=Execution.EAGER), requests)
    assert speculate(load, requests, texts, 3, execution=Execution.EAGER)[0].tokens == texts


def lags(request: GenerateRequest, committed: Sequence[int], drafted: Sequence[int] = ()) -> Scoring | None:
    """Counts that know nothing of the draft."""
    return scoring(request, committed)


def forgets_the_bonus(
    logits: Tensor, rows: Sequence[ForwardRow], positions: Sequence[int], config: DecoderConfig
) -> None:
    """Rules at the drafted places only, and none at the place behind them."""
    raw, place = logits.clone(), -1
    apply_rules(logits, rows, positions, config)
    for row in rows:
        place += row.num_logits
        if row.num_logits > 1:
            logits[place] = raw[place]


@pytest.mark.parametrize(
    ("module", "name", "fault"),
    [(targets.passes, "scoring", lags), (targets.model, "apply_rules", forgets_the_bonus)],
    ids=["lags", "bonus"],
)
def test_rules_that_lag_or_forget_a_place_are_found_out(
    load: LoadTarget, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, fault: Callable[..., Any]
) -> None:
    different = 0
    for seed in range(6):
        requests = some_requests(seed)
        texts = plain_texts(load(), requests)
        with monkeypatch.context() as planted:
            planted.setattr(module, name, fault)
            different += speculate(load, requests, texts, seed)[0].tokens != texts
    assert different > 3


@pytest.mark.parametrize("seed", range(6))
def test_the_plain_loop_is_transformers_generate_with_the_same_rules(load: LoadTarget, llama: Path, seed: int) -> None:
    rng = random.Random(seed)
    prompt = tuple(rng.randrange(3, VOCAB) for _ in range(12))
    ends = frozenset(rng.sample(range(VOCAB), 30))
    bias = tuple((token, rng.uniform(-3, 3)) for token in range(10))
    rules = LogitRules(bias, 0.0, 0.0, rng.choice([0.9, 1.2, 1.6]), 9, ends)
    request = GenerateRequest("r", prompt, SamplingParams(0.0), StopRules(24, ends), rules=rules)
    theirs: Any = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    made = theirs.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        do_sample=False,
        max_new_tokens=24,
        min_new_tokens=9,
        repetition_penalty=rules.repetition_penalty,
        sequence_bias=[[[token], value] for token, value in bias],
        eos_token_id=sorted(ends),
        pad_token_id=0,
    )
    sequence = plain.generate(load(), request)
    assert sequence.tokens == made[0].tolist()
    assert sequence.num_generated >= 9


def test_min_tokens_holds_every_stop_token_back_and_no_longer(load: LoadTarget) -> None:
    every = frozenset(range(VOCAB - 1))
    for count in (0, 1, 5):
        rules = LogitRules(min_tokens=count, withheld=every)
        request = GenerateRequest("r", (5, 6), SamplingParams(1.0, seed=3), StopRules(40, every), rules=rules)
        result = run_all(Engine(load(), Off()), [request])
        assert result.reasons == {"r": FinishReason.STOP}
        assert result.tokens["r"][:count] == [VOCAB - 1] * count
        assert len(result.tokens["r"]) >= count + 1


def test_rows_without_rules_keep_the_one_call(load: LoadTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sequence whose min_tokens are written has none any more."""
    model, widths = load(), []
    monkeypatch.setattr(targets.model, "apply_rules", lambda logits, *_: widths.append(len(logits)))
    held = LogitRules(min_tokens=3, withheld=frozenset({2}))
    for rules, count in ((NO_RULES, 0), (held, 3)):
        widths.clear()
        plain.generate(model, GenerateRequest("r", (5,), SamplingParams(0.0), StopRules(8), rules=rules))
        assert len(widths) == count


def test_an_engine_refuses_a_bias_outside_its_vocabulary(load: LoadTarget) -> None:
    rules = LogitRules(((VOCAB, 1.0),))
    request = GenerateRequest("r", (5,), SamplingParams(), StopRules(8), rules=rules)
    with pytest.raises(InvalidRequest, match=f"token {VOCAB}, which is outside the vocabulary"):
        Engine(load(), Off()).submit(request, print)


def test_a_trimmed_head_has_the_rules_of_the_tokens_that_it_has(load: LoadTarget) -> None:
    tokens = (2, 3, 5, 7, 11)
    config = replace(load().decoder.config, head_token_ids=tokens)
    rules = LogitRules(((4, 9.0), (5, 2.0)), 0.5, 0.5, 1.5)
    prompt, text = [2, 4, 9], [7, 7, 4]
    logits = torch.randn(1, len(tokens), generator=torch.Generator().manual_seed(1))
    whole = [float(logits[0, tokens.index(token)]) if token in tokens else 0.0 for token in range(VOCAB)]
    expected = expected_logits(whole, rules, prompt, text)
    row = ForwardRow(0, 5, text[-1:], 1, Scoring(Ruled(rules, len(prompt), [*prompt, *text])))
    apply_rules(logits, [row], [6], config)
    torch.testing.assert_close(logits[0], torch.tensor([expected[token] for token in tokens]), rtol=1e-5, atol=1e-5)
