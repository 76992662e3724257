"""The demo family in fp32: what HTTP gives is what the command line prints, however it is drafted for.

The router decides by goodput, so how much it drafts depends on the machine; where drafts are needed, requests ask.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.workload import HELD_OUT
from cli.demo_family import CODE as CONFIG
from deployments.config import AppConfig, HttpConfig, load_config
from deployments.config_access import AccessConfig
from tests.deployments.harness import wait_until
from tests.deployments.head import Head
from tests.deployments.served import Served, deployed

pytestmark = [pytest.mark.ray, pytest.mark.slow]

MODELS = CONFIG.parents[2] / "demo/models"
DRAFTER = MODELS / "drafter"
MAX_TOKENS = 40
AUTO, ASKED = "auto", {"depth": 2, "length": 3}
TARGETS = ("large", "small")


@dataclass(frozen=True)
class Case:
    """depth None: the command line runs the plain loop."""

    model: str
    temperature: float
    depth: str | None

    def __str__(self) -> str:
        return f"{self.model}-{self.temperature}-{self.depth or 'plain'}"


CASES = (Case("large", 0.0, "4"), Case("large", 0.8, None), Case("small", 0.8, "2"))


def prompts() -> list[str]:
    """Held-out code, and text whose characters take several tokens each."""
    rows = map(json.loads, HELD_OUT.read_text(encoding="utf-8").splitlines()[:2])
    return [*(row["prompt"][:300] for row in rows), 'GREETINGS = ["Grüße", "你好", "🙂"]\n\ndef greet(']


def generate(case: Case, lines: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "cli.main", "generate", "--json", "--dtype=fp32", "--threads=1"]
    command += ["--target", str(MODELS / case.model), "--prompts", str(lines), f"--max-tokens={MAX_TOKENS}"]
    command += [f"--temperature={case.temperature}"]
    if case.depth is not None:
        command += ["--drafter", str(DRAFTER), f"--depth={case.depth}", "--length=3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, list[dict[str, Any]]]:
    """A prompt's seed is its number."""
    if not DRAFTER.is_dir():
        pytest.skip("demo/models/drafter is not there; `make demo-models` trains it")
    lines = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [{"prompt": prompt, "seed": seed} for seed, prompt in enumerate(prompts())]
    lines.write_text("\n".join(map(json.dumps, rows)))
    with ThreadPoolExecutor(2) as threads:
        return dict(zip(CASES, threads.map(lambda case: generate(case, lines), CASES), strict=True))


def fp32(config: AppConfig, http_port: int) -> AppConfig:
    """Deadlines that a busy machine keeps."""
    targets = []
    for target in config.targets:
        assert target.speculation is not None
        patient = target.speculation.model_copy(update={"deadline_ms": 1000.0})
        targets.append(target.model_copy(update={"dtype": "fp32", "speculation": patient}))
    assert config.pool is not None
    pool = config.pool.model_copy(update={"dtype": "fp32", "path": str(DRAFTER)})
    http = HttpConfig(port=http_port)
    changes = {"targets": tuple(targets), "pool": pool, "http": http, "access": AccessConfig(open=True)}
    return config.model_copy(update=changes)


@pytest.fixture(scope="module")
def demo(printed: dict[Case, list[dict[str, Any]]], ray_head: Head) -> Iterator[Served]:
    with deployed(fp32(load_config(CONFIG), ray_head.http_port), ray_head) as app:
        yield app


@dataclass
class Answer:
    """The fields that the command line prints too."""

    token_ids: list[int]
    text: str
    finish_reason: str | None


def whole(demo: Served, model: str, prompt: str, speculation: Any = AUTO, **settings: Any) -> Answer:
    extra = {"return_token_ids": True, "speculation": speculation}
    answer = demo.client.completions.create(model=model, prompt=prompt, extra_body=extra, **settings)
    (choice,) = answer.choices
    token_ids = choice.model_dump()["token_ids"]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(token_ids)
    return Answer(token_ids, choice.text, choice.finish_reason)


def streamed(demo: Served, model: str, prompt: str, speculation: Any = AUTO, **settings: Any) -> Answer:
    joined = Answer([], "", None)
    extra = {"return_token_ids": True, "speculation": speculation}
    for chunk in demo.client.completions.create(model=model, prompt=prompt, stream=True, extra_body=extra, **settings):
        for choice in chunk.choices:
            assert joined.finish_reason is None, "nothing follows the last piece"
            joined.token_ids += choice.model_dump()["token_ids"]
            joined.text += choice.text
            joined.finish_reason = choice.finish_reason
    return joined


@pytest.mark.parametrize(("ask", "speculation"), [(whole, AUTO), (streamed, AUTO), (whole, ASKED)])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_http_gives_what_the_command_line_prints(
    demo: Served, printed: dict[Case, list[dict[str, Any]]], case: Case, ask: Callable[..., Answer], speculation: Any
) -> None:
    settings = {"max_tokens": MAX_TOKENS, "temperature": case.temperature, "speculation": speculation}

    def answer(seed: int, prompt: str) -> Answer:
        return ask(demo, case.model, prompt, seed=seed, **settings)

    drafted = demo.target(case.model, "stats")["num_proposed"]
    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(answer, range(3), prompts()))
    assert answers == [Answer(line["token_ids"], line["text"], line["finish_reason"]) for line in printed[case]]
    assert speculation == AUTO or demo.target(case.model, "stats")["num_proposed"] > drafted


def test_the_router_shows_its_arms_and_its_belief(demo: Served) -> None:
    for model in TARGETS:
        whole(demo, model, prompts()[0], max_tokens=MAX_TOKENS, temperature=0.0)
    told = demo.get("/debug/router")
    for model in TARGETS:
        (router,) = told[model]
        assert router == demo.target(model, "router")
        assert router["policy"] == "goodput"
        assert list(router["acceptance"]) == ["2", "4", "6"]
        assert router["arms"][0]["arm"] == "off"
        assert all(arm["tokens_per_second"] > 0 for arm in router["arms"])
        assert demo.target(model, "describe")["exits"] == (2, 4, 6)


def test_the_command_line_drafted_where_it_was_told_to(printed: dict[Case, list[dict[str, Any]]]) -> None:
    for case, lines in printed.items():
        assert bool(sum(line["drafted"] for line in lines)) == (case.depth is not None)
        for line in lines:
            assert len(line["token_ids"]) <= 1 + line["rounds"] + line["accepted"]


def check_all(demo: Served, asked: list[tuple[Case, int, str]], printed: dict[Case, list[dict[str, Any]]]) -> None:
    """All at once; each gets the tokens that the command line printed."""
    with ThreadPoolExecutor(len(asked)) as threads:
        answers = threads.map(
            lambda one: streamed(
                demo, one[0].model, one[2], ASKED, max_tokens=MAX_TOKENS, temperature=one[0].temperature, seed=one[1]
            ),
            asked,
        )
        for (case, seed, _), answer in zip(asked, answers, strict=True):
            assert answer.token_ids == printed[case][seed]["token_ids"]


def test_both_targets_at_once_share_a_draft_replica(demo: Served, printed: dict[Case, list[dict[str, Any]]]) -> None:
    """Each begins on a replica of its own; when one of these is gone, both have the other."""
    used = {model: demo.target(model, "describe")["draft_replica"] for model in TARGETS}
    if used["large"] != used["small"]:
        demo.kill_draft_replica(used["large"])
        wait_until(lambda: demo.target("large", "describe")["draft_replica"] == used["small"])
    accepted = sum(demo.target(model, "stats")["num_accepted"] for model in TARGETS)
    sampled = [case for case in CASES if case.temperature]
    asked = [(case, seed, prompt) for seed, prompt in enumerate(prompts()) for case in sampled]
    for _ in range(20):  # passes are short, and two targets meet in one by chance
        check_all(demo, asked, printed)
        if any(member.stats.num_mixed_passes for member in demo.pool()):
            break
    else:
        pytest.fail("no pass held rows of both targets")
    assert sum(demo.target(model, "stats")["num_accepted"] for model in TARGETS) > accepted


@pytest.mark.parametrize("model", TARGETS)
def test_a_chat_is_the_completion_of_what_the_template_writes(demo: Served, model: str) -> None:
    settings: dict[str, Any] = {"max_tokens": 16, "temperature": 0.8, "seed": 5}
    messages: list[Any] = [{"role": "user", "content": "import os"}, {"role": "user", "content": "def main():"}]
    expected = whole(demo, model, "import os\ndef main():\n", **settings)
    answer = demo.client.chat.completions.create(model=model, messages=messages, **settings)
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == expected.finish_reason
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(expected.token_ids)
    chunks = demo.client.chat.completions.create(model=model, messages=messages, stream=True, **settings)
    pieces = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(pieces) == expected.text
