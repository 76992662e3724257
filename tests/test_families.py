"""Every supported family, plain and speculative, against transformers' greedy generate, beyond any window."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from deployments.local import draft_policy, open_drafter
from protocol.request import GenerateRequest, SamplingParams, StopRules
from targets.complete import complete
from targets.engine import Engine, EngineConfig
from targets.model import load_target
from tests.model.families import NAMES, VOCAB, WINDOW, make_checkpoint

MAX_TOKENS = 20


def prompts(seed: int) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(seed)
    return [tuple(torch.randint(3, VOCAB, (n,), generator=generator).tolist()) for n in (1, WINDOW + 7, 3 * WINDOW)]


def generated(directory, rows) -> list[tuple[int, ...]]:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    texts = []
    for row in rows:
        ids = torch.tensor([row])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_TOKENS, min_new_tokens=MAX_TOKENS,
            do_sample=False, eos_token_id=-1, pad_token_id=0,
        )  # fmt: skip
        texts.append(tuple(out[0, len(row) :].tolist()))
    return texts


@pytest.mark.parametrize("name", NAMES)
def test_a_family_is_equal_to_generate_plain_and_speculative(name, tmp_path):
    target = make_checkpoint(name, tmp_path / "target", seed=1)
    stranger = make_checkpoint("llama", tmp_path / "drafter", seed=2)
    rows = prompts(seed=3)
    requests = [
        GenerateRequest(str(i), row, SamplingParams(temperature=0), StopRules(MAX_TOKENS)) for i, row in enumerate(rows)
    ]
    expected = generated(target, rows)
    for drafter in (None, target, stranger):
        model, own = load_target(target, dtype=torch.float32, num_positions=2048, page_size=16), None
        if drafter:
            sizes = {"num_positions": 2048, "page_size": 16, "max_rows": 8}
            own = open_drafter(model, target, drafter, dtype=torch.float32, **sizes)
        client, config = own.client if own else None, EngineConfig(prefill_chunk=8)
        with Engine(model, draft_policy(own, None, 3), client, config) as engine:
            completions = complete(engine, requests)
        assert [c.token_ids for c in completions] == expected
        if drafter == target:
            assert all(c.stats.accepted == c.stats.drafted > 0 for c in completions)
