"""A model whose scores are no numbers behind one of its tokens: who writes that token ends there, and nobody else."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from drafters.client import LocalDraftClient
from model.decoder import Decoder
from model.execution import Execution
from protocol.errors import ModelFault
from protocol.plan import Mode
from protocol.request import FinishReason, GenerateRequest
from router.policy import Fixed
from targets import plain
from targets.engine import Engine, EngineConfig
from targets.model import TargetModel, load_target
from tests.model.families import EXECUTIONS, VOCAB
from tests.reference.engine import Collector, plain_texts, random_requests, run_all
from tests.targets.ahead import Connect, has_given_back
from tests.targets.conftest import LoadTarget

BROKEN = 77


@pytest.fixture(scope="module")
def broken(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint, with nothing but NaN in the embedding of one token."""
    directory = tmp_path_factory.mktemp("broken") / "llama"
    shutil.copytree(llama, directory)
    tensors = load_file(directory / "model.safetensors")
    tensors["model.embed_tokens.weight"][BROKEN] = torch.nan
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def load_broken(directory: Path, execution: Execution = Execution.AUTO) -> TargetModel:
    return load_target(directory, dtype=torch.float32, num_positions=640, page_size=8, execution=execution)


def cut(text: Sequence[int]) -> tuple[list[int], bool]:
    """A text up to the broken token, and whether it ends there for want of a next one."""
    end = text.index(BROKEN) + 1 if BROKEN in text else len(text)
    return list(text[:end]), end < len(text)


def some_requests() -> list[GenerateRequest]:
    """Half of them ask for logprobs."""
    requests = [r for r in random_requests(5, 40, VOCAB, max_tokens=24) if BROKEN not in r.prompt_ids]
    return [replace(r, logprobs=2) if index % 2 else r for index, r in enumerate(requests)]


def assert_only_they_ended(result: Collector, texts: dict[str, list[int]], log: pytest.LogCaptureFixture) -> None:
    expected = {name: cut(text) for name, text in texts.items()}
    undefined = {name for name, (_, ends) in expected.items() if ends}
    assert 3 < len(undefined) < len(texts)
    assert result.tokens == {name: text for name, (text, _) in expected.items()}
    assert {name for name, reason in result.reasons.items() if reason is FinishReason.UNDEFINED} == undefined
    assert FinishReason.ERROR not in result.reasons.values()
    num_told = sum(map(len, result.logprobs.values()))
    assert num_told == sum(len(result.tokens[name]) for name, told in result.logprobs.items() if told)
    assert all(value <= 0 for told in result.logprobs.values() for own in told for value in (own.chosen, own.top[1][1]))
    logged = [record.args[0] for record in log.records if "not numbers" in record.message and record.args]
    assert sorted(logged) == sorted(undefined)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_a_request_without_a_next_token_ends_with_an_error_and_touches_no_other(
    broken: Path, load: LoadTarget, drafter: Decoder, execution: Execution, caplog: pytest.LogCaptureFixture
) -> None:
    """Few pages, so that others are given those of sequences that ended so."""
    requests = some_requests()
    texts = plain_texts(load(), requests)
    policy = Fixed(3, 3)
    engine = Engine(load_broken(broken, execution), policy, Connect(drafter)(), EngineConfig(max_batch=6))
    result = run_all(engine, requests)
    assert_only_they_ended(result, texts, caplog)
    assert has_given_back(engine)


def test_it_is_the_same_where_the_pool_drafts_ahead_with_a_broken_drafter(
    broken: Path, load: LoadTarget, caplog: pytest.LogCaptureFixture
) -> None:
    requests = some_requests()
    texts = plain_texts(load(), requests)
    client: LocalDraftClient = Connect(load_broken(broken).decoder)()
    policy = Fixed(4, 3, Mode.AHEAD)
    engine = Engine(load_broken(broken), policy, client, EngineConfig(max_batch=6), ahead=True)
    result = run_all(engine, requests)
    assert_only_they_ended(result, texts, caplog)
    assert engine.stats().num_accepted > 100
    assert engine.stats().num_failures == 0


def test_a_prompt_that_breaks_the_model_has_no_first_token(broken: Path) -> None:
    request = GenerateRequest("r", (5, BROKEN, 6), some_requests()[0].sampling, some_requests()[0].stop)
    result = run_all(Engine(load_broken(broken), Fixed(3, 3)), [request])
    assert (result.tokens, result.reasons) == ({"r": []}, {"r": FinishReason.UNDEFINED})
    with pytest.raises(ModelFault, match="no token 3"):
        plain.generate(load_broken(broken), request)
