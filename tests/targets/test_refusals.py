"""Grammars that are asked about picks: the text is that of the plain loop, which masks every place before it picks."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from llguidance import LLMatcher

import targets.passes
from model.config import DecoderConfig
from model.decoder import Decoder
from model.execution import Execution
from model.sampling import NO_PICK
from protocol.logit_rules import NO_RULES, LogitRules
from protocol.request import GenerateRequest, SamplingParams
from router.policy import Fixed
from targets.engine import Engine, EngineConfig
from targets.grammar import Constraint, Grammars
from targets.model import ForwardRow
from targets.own_client import OwnDraftClient
from targets.refusals import allowed_picks, banned_columns, head_tokens
from tests.reference.engine import Collector, ScriptedDrafter, plain_texts, run_all
from tests.reference.logit_rules import with_rules
from tests.targets.ahead import Connect, Whimsical, engine_of
from tests.targets.conftest import LoadTarget
from tests.targets.shaped import EOS, TOKENIZER, shaped_requests
from tests.targets.test_engine import Randomised

VOCAB = len(TOKENIZER)
WIDE = LLMatcher.grammar_from_regex(r"[a-zA-Z0-9 .,:;()=_]{3,40}(the end|the start)\.")
GRAMMARS = (WIDE, LLMatcher.grammar_from_regex("return self[0-9]{1,6}(return [a-z]{2})?"), "")
# Begins to spell, letter by letter, what a grammar forces in one token.
SPELLING = LogitRules(tuple((TOKENIZER.convert_tokens_to_ids(letter), 9.0) for letter in "ru"))
FILTERS: dict[str, Any] = {"top_k": 40, "top_p": 0.9}


def some_requests(seed: int, count: int = 9, **sampling: Any) -> list[GenerateRequest]:
    """Grammars that allow much, that force much, and none."""
    made = shaped_requests(seed, count, **sampling)
    return [
        one if index % 4 == 3 else replace(one, grammar=GRAMMARS[(index + seed) % 3]) for index, one in enumerate(made)
    ]


def speculate(
    load: LoadTarget, asked: list[GenerateRequest], texts: dict[str, list[int]], seed: int, **sizes: Any
) -> Collector:
    rng = random.Random(seed)
    drafter = ScriptedDrafter(asked, texts, seed, accuracy=rng.choice([0.5, 0.9]), trouble=0.05)
    config = EngineConfig(max_batch=rng.choice([1, 4, 16]), prefill_chunk=rng.choice([7, 512]))
    return run_all(Engine(load(**sizes), Randomised(seed, 6), drafter, config), asked)


@pytest.mark.parametrize(("picks", "num_asked"), [([9, 7, 8], 1), ([6, 9, 8], 2), ([6, 7, 8], 3)])
def test_nothing_is_asked_behind_the_first_pick_that_is_not_the_drafts(
    load: LoadTarget, picks: list[int], num_asked: int
) -> None:
    asked: list[tuple[list[int], int]] = []
    row = ForwardRow("x", 0, [5, 6, 7], 3, refusal=lambda draft, pick: asked.append((list(draft), pick)))
    sampling, logits = [SamplingParams(temperature=0)] * 3, torch.zeros(3, VOCAB)
    assert allowed_picks(load().decoder, logits, [row], picks, sampling, range(3)) == picks
    assert asked == [([6, 7][:place], picks[place]) for place in range(num_asked)]


@pytest.mark.parametrize("seed", range(12))
def test_a_pick_is_refused_where_the_mask_lacks_it(grammars: Grammars, seed: int) -> None:
    """At every place of a text that wanders, for every token. The end is refused at first where nothing else may come,
    and then found in the mask.
    """
    rng, grammar = random.Random(seed), [*GRAMMARS[:2], *(one.grammar for one in shaped_requests(0, 4))][seed % 6]
    wandering, text, num_forced = grammars.constraint(grammar), list[int](), 0
    for _ in range(40):
        at = rng.randint(0, len(text))
        mask = grammars.constraint(grammar).masks(text[:at], text[at:])[-1]
        allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()
        for token in rng.sample(range(NO_PICK, VOCAB), VOCAB):
            refused = wandering.refusal(text[:at], text[at:], token)
            if refused is None:
                assert token in allowed
            else:
                assert (refused == mask).all()
                assert token not in allowed or allowed == [EOS]
        num_forced += len(allowed) == 1
        goes_on = [token for token in allowed if token != EOS and rng.random() < 0.9]
        text = [*text, rng.choice(goes_on)] if goes_on else text[: len(text) // 2]
    assert num_forced or grammar == WIDE


@pytest.mark.parametrize("sampling", [{}, FILTERS], ids=["free", "filters"])
@pytest.mark.parametrize("seed", range(12))
def test_the_text_is_the_plain_loops(load_shaped: LoadTarget, seed: int, sampling: dict[str, Any]) -> None:
    asked = some_requests(seed, **sampling)
    texts = plain_texts(load_shaped(), asked)
    result = speculate(load_shaped, asked, texts, seed, num_positions=[4096, 320][seed % 2], page_size=4)
    assert result.tokens == texts
    assert sum(stats.accepted for stats in result.stats.values()) > 0


@pytest.mark.parametrize("seed", range(6))
def test_it_is_beside_rules_and_logprobs(load_shaped: LoadTarget, seed: int) -> None:
    """None holds an end back that the grammar insists on, or goes on behind it."""
    free = some_requests(seed)
    asked = [
        replace(one, rules=replace(one.rules, min_tokens=0), logprobs=index % 3 or None, stop=free[index].stop)
        for index, one in enumerate(with_rules(free, seed, VOCAB))
    ]
    texts = plain_texts(load_shaped(), asked)
    result = speculate(load_shaped, asked, texts, seed)
    assert result.tokens == texts
    assert all(bool(result.logprobs[one.request_id]) == (one.logprobs is not None) for one in asked)


def test_it_is_in_plain_torch(load_shaped: LoadTarget) -> None:
    asked = some_requests(2)
    texts = plain_texts(load_shaped(execution=Execution.EAGER), asked)
    assert speculate(load_shaped, asked, texts, 3, execution=Execution.EAGER).tokens == texts


@pytest.mark.parametrize("seed", range(4))
def test_it_is_where_passes_stop_on_their_way(load_shaped: LoadTarget, seed: int, drafter: Decoder) -> None:
    asked = [replace(one, prompt_ids=tuple(token % 97 for token in one.prompt_ids)) for one in some_requests(seed)]
    engine = engine_of(load_shaped, Connect(drafter)(), Whimsical(seed), max_batch=4)
    assert run_all(engine, asked).tokens == plain_texts(load_shaped(), asked)


def takes_what_fits(constraint: Constraint, token: int) -> bool:
    """Knows nothing of tokens that are forced."""
    return token >= 0 and constraint._matcher.validate_tokens([token]) == 1


def forgets_the_draft(constraint: Constraint, generated: list[int], draft: list[int], pick: int) -> Any:
    return refusal(constraint, generated, draft[:-1], pick)


refusal = Constraint.refusal


@pytest.mark.parametrize(
    ("owner", "name", "fault", "rules", "sampling"),
    [
        (Constraint, "refusal", lambda *_: None, NO_RULES, {}),
        (Constraint, "refusal", forgets_the_draft, NO_RULES, {}),
        (Constraint, "_takes", takes_what_fits, SPELLING, {}),
        (targets.passes, "comes_late", lambda _: True, NO_RULES, FILTERS),
    ],
    ids=["no say", "no draft", "forced", "filters"],
)
def test_a_grammar_that_is_asked_the_wrong_way_is_found_out(
    load_shaped: LoadTarget,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    fault: Callable[..., Any],
    rules: LogitRules,
    sampling: dict[str, Any],
) -> None:
    different = 0
    for seed in range(8):
        asked = [replace(one, rules=rules) for one in some_requests(seed, **sampling)]
        texts = plain_texts(load_shaped(), asked)
        with monkeypatch.context() as planted:
            planted.setattr(owner, name, fault)
            different += speculate(load_shaped, asked, texts, seed).tokens != texts
    assert different > 1


def test_masks_are_computed_where_a_pick_is_refused_and_nowhere_else(
    load_shaped: LoadTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a drafter on the target's KV, too, whose own picks are asked about likewise."""
    asked, refused, computed = [replace(one, grammar=WIDE) for one in some_requests(1)], [], []

    def counted(constraint: Constraint, *where: Any) -> Any:
        found = refusal(constraint, *where)
        refused.append(found is not None)
        return found

    mask = Constraint._mask
    monkeypatch.setattr(Constraint, "refusal", counted)
    monkeypatch.setattr(Constraint, "_mask", lambda self, draft: computed.append(draft) or mask(self, draft))
    model = load_shaped()
    own = OwnDraftClient(model, model.decoder)
    result = run_all(Engine(model, Fixed(2, 4), own, EngineConfig(max_batch=4)), asked)
    assert len(computed) == sum(refused) < len(refused)
    assert result.tokens == plain_texts(load_shaped(), asked)


def test_a_trimmed_head_bans_the_columns_of_the_tokens_that_it_has(load_shaped: LoadTarget) -> None:
    whole = load_shaped().decoder.config
    bits = np.packbits(np.arange(-(-VOCAB // 32) * 32) % 3 == 0, bitorder="little").data
    assert banned_columns(head_tokens(whole), bits).tolist() == [token % 3 != 0 for token in range(VOCAB)]
    trimmed: DecoderConfig = replace(whole, head_token_ids=(2, 3, 9, 10))
    assert banned_columns(head_tokens(trimmed), bits).tolist() == [True, False, False, True]
