"""Every supported family against transformers' own model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from model.batch import BatchRow, build_batch
from model.decoder import Decoder
from model.execution import Execution
from model.load import load_decoder
from tests.model.families import EXECUTIONS, NAMES, WINDOW, change_config, make_checkpoint
from tests.model.sequences import Sequences, random_tokens


@pytest.fixture(scope="module", params=NAMES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(request.param, tmp_path_factory.mktemp(request.param), seed=7)


@pytest.fixture(scope="module", params=EXECUTIONS)
def decoder(checkpoint: Path, request: pytest.FixtureRequest) -> Decoder:
    return load_decoder(checkpoint, dtype=torch.float32, execution=request.param)


@pytest.fixture(scope="module")
def oracle(checkpoint: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)


def oracle_logits(oracle: Any, tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = oracle(tokens[None]).logits[0]
    return logits


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_one_prefill_gives_the_logits_of_transformers(decoder: Decoder, oracle: Any) -> None:
    tokens = random_tokens(0, 5 * WINDOW)
    assert_same(Sequences(decoder).forward({0: tokens})[0], oracle_logits(oracle, tokens))


@pytest.mark.parametrize("page_size", [1, 16])
def test_a_prompt_in_chunks_gives_the_same_logits(decoder: Decoder, oracle: Any, page_size: int) -> None:
    tokens = random_tokens(1, 75)
    sequences = Sequences(decoder, page_size=page_size)
    chunks = [sequences.forward({0: chunk})[0] for chunk in tokens.split_with_sizes([40, 5, 1, 29])]
    assert_same(torch.cat(chunks), oracle_logits(oracle, tokens))


def test_a_prefill_chunk_and_verify_rows_share_a_pass(decoder: Decoder, oracle: Any) -> None:
    prompts = {sequence: random_tokens(10 + sequence, length) for sequence, length in enumerate((30, 61, 9, 45))}
    sequences = Sequences(decoder)
    sequences.forward({s: prompts[s][:-5] for s in (0, 1)})
    logits = sequences.forward({2: prompts[2], 1: prompts[1][-5:-1], 3: prompts[3][:40], 0: prompts[0][-5:]})
    assert_same(logits[0], oracle_logits(oracle, prompts[0])[-5:])
    assert_same(logits[1], oracle_logits(oracle, prompts[1])[-5:-1])
    assert_same(logits[2], oracle_logits(oracle, prompts[2]))
    assert_same(logits[3], oracle_logits(oracle, prompts[3][:40]))


def test_a_pass_may_stop_at_any_layer_and_go_on(decoder: Decoder, oracle: Any) -> None:
    tokens = random_tokens(2, 33)
    for cuts in [(1,), (2,), (1, 3)]:
        assert_same(Sequences(decoder).forward({0: tokens}, cuts)[0], oracle_logits(oracle, tokens))


@pytest.mark.parametrize("page_size", [1, 16])
def test_rejected_tokens_leave_no_trace(decoder: Decoder, oracle: Any, page_size: int) -> None:
    tokens, rejected = random_tokens(3, 50), random_tokens(4, 9)
    sequences = Sequences(decoder, page_size=page_size)
    sequences.forward({0: torch.cat([tokens[:30], rejected])})
    sequences.truncate(0, 30)
    assert_same(sequences.forward({0: tokens[30:]})[0], oracle_logits(oracle, tokens)[30:])


def test_greedy_tokens_equal_generate_past_every_window(decoder: Decoder, oracle: Any) -> None:
    oracle.generation_config.eos_token_id = None
    for seed, length in [(5, 3 * WINDOW + 1), (6, 3)]:
        prompt = random_tokens(seed, length)
        with torch.inference_mode():
            expected = oracle.generate(
                prompt[None],
                attention_mask=torch.ones_like(prompt[None]),
                max_new_tokens=2 * WINDOW,
                do_sample=False,
                pad_token_id=0,
            )
        tokens = Sequences(decoder).greedy(prompt, 2 * WINDOW)
        assert tokens == expected[0, length:].tolist()
        assert len(set(tokens)) > 2, "the model loops on one token: the test shows nothing"


def test_bfloat16_rounds_where_transformers_does(checkpoint: Path) -> None:
    tokens = random_tokens(8, 40)
    expected = oracle_logits(AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16), tokens)
    eager = load_decoder(checkpoint, dtype=torch.bfloat16, execution=Execution.EAGER)
    actual = Sequences(eager).forward({0: tokens})[0]
    torch.testing.assert_close(actual, expected.float(), atol=0.1, rtol=0.05)
    assert (actual == expected.float()).float().mean() > 0.5


def test_the_first_layers_alone_can_be_loaded(checkpoint: Path, decoder: Decoder) -> None:
    seen: list[tuple[int, int]] = []
    shallow = load_decoder(
        checkpoint, dtype=torch.float32, num_layers=2, progress=lambda done, total: seen.append((done, total))
    )
    tokens = random_tokens(9, 20)
    batch = build_batch([BatchRow(np.arange(20), 20)])
    with torch.inference_mode():
        hidden = decoder.run(decoder.embed(tokens.tolist()), batch, decoder.new_kv(20), 0, 2)
        expected = decoder.logits(hidden, range(len(hidden)))
    torch.testing.assert_close(Sequences(shallow).forward({0: tokens})[0], expected, atol=1e-4, rtol=1e-4)
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_logits_beyond_the_unscaled_context_are_those_of_transformers(tmp_path: Path, execution: Execution) -> None:
    make_checkpoint("llama", tmp_path, seed=7)
    change_config(tmp_path, {"rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn", "factor": 4.0}})
    tokens = random_tokens(8, 400)
    decoder = load_decoder(tmp_path, dtype=torch.float32, execution=execution)
    expected = oracle_logits(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32), tokens)
    assert_same(Sequences(decoder).forward({0: tokens})[0][256:], expected[256:])
