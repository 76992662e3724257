"""What serving costs: the offline process is the same engine on the same cores, pairs are neighbours."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from api.text import decode
from bench.arguments import CONFIG
from bench.serving.__main__ import main
from bench.serving.offline import Timing, engine_alone
from bench.serving.speed import in_turn, plain_config, served
from deployments.config import AppConfig, TargetConfig, load_config
from protocol.errors import ConfigError
from protocol.request import SamplingParams
from tests.api.api_twins import tiny_tokenizer
from tests.deployments.checkpoints import make_family
from tests.deployments.served import expected, plain_engine
from tests.resident import MemoryRecorder

PROMPTS = ["def add(a, b):", "import os", "class Tree:"]
BOTH = """
targets:
  - {name: large, path: large, dtype: fp32, page_size: 16, kv_mb: 8, speculation: {policy: fixed, depth: 4}}
  - {name: small, path: small, page_size: 16, kv_mb: 8}
pool: {path: drafter, page_size: 16, kv_mb: 8}
"""
APP = "targets: [{name: large, path: large, dtype: fp32, page_size: 16, kv_mb: 8}]\n"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_family(tmp_path_factory.mktemp("family")) / "app.yaml"
    path.write_text(APP)
    return path


def target(app: Path, **changes: object) -> TargetConfig:
    return load_config(app).targets[0].model_copy(update={"max_batch": 2, **changes})


def test_the_engine_alone_gives_the_plain_loops_text_and_leaves_this_process_where_it_was(app: Path) -> None:
    before = os.sched_getaffinity(0)
    with engine_alone(target(app, cores=(min(before),)), PROMPTS, max_tokens=12) as run:
        first, second = run(), run()
        assert os.sched_getaffinity(0) == before
    with plain_engine(app.parent / "large") as engine:
        texts = [decode(tiny_tokenizer(), expected(engine, 12, SamplingParams(0.0), prompt)) for prompt in PROMPTS]
    assert first.texts == second.texts == texts
    assert first.num_tokens == 36
    assert first.tokens_per_second == pytest.approx(36 / first.seconds)


async def test_repetitions_are_interleaved_and_the_first_does_not_count() -> None:
    order: list[str] = []

    def measure(mode: str):  # type: ignore[no-untyped-def]
        async def run() -> Timing:
            order.append(mode)
            return Timing(len(order), 1.0, [])

        return run

    timings = await in_turn({mode: measure(mode) for mode in "abc"}, repeat=3)
    assert "".join(order) == "cab" + "abc" + "bca" + "cab"
    assert [timing.num_tokens for timing in timings["a"]] == [4, 9, 11]


def test_the_bar_is_met_by_the_median_and_its_interval() -> None:
    def timings(*rates: int) -> list[Timing]:
        return [Timing(rate, 1.0, ["text"]) for rate in rates]

    good = served("whole", timings(90, 86, 87), timings(100, 100, 100))
    assert (good.bar.met, good.identical) == (True, 1.0)
    assert not served("whole", timings(84, 84, 84), timings(100, 100, 100)).bar.met
    assert not served("whole", timings(90, 60, 90), timings(100, 100, 100)).bar.met
    assert served("streamed", timings(84, 84, 84), timings(100, 100, 100)).bar.met


def test_the_served_target_is_plain_and_alone() -> None:
    config = plain_config(load_config(CONFIG), "small", concurrency=8, threads=2, cores=[0, 1])
    (only,) = config.targets
    assert (only.name, only.speculation, only.max_batch, only.threads, only.cores) == ("small", None, 8, 2, (0, 1))
    assert (config.pool, config.grpc) == (None, None)
    assert AppConfig.model_validate(config.model_dump()) == config


def test_a_target_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'huge'.*large, small"):
        plain_config(load_config(CONFIG), "huge", concurrency=8, threads=1, cores=[0])


@pytest.fixture
def both(app: Path) -> Path:
    path = app.parent / "both.yaml"
    path.write_text(BOTH)
    prompts = "\n".join(json.dumps({"prompt": prompt}) for prompt in PROMPTS)
    (app.parent / "prompts.jsonl").write_text(prompts)
    return path


def test_a_missing_config_is_one_line_of_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config=absent.yaml"]) == 2
    assert "absent.yaml" in capsys.readouterr().err


def test_hundreds_of_requests_leave_nothing_behind(app: Path) -> None:
    recorder = MemoryRecorder()
    with engine_alone(target(app), PROMPTS * 16, max_tokens=8) as run:
        for done in range(48, 801, 48):
            run()
            recorder.sample(done)
    (row,) = (row for row in recorder.result(base_after=400) if row.process == "this process")
    assert row.peak > 100
    assert not row.grows, row


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300)
def test_the_command_measures_http(both: Path) -> None:
    core, out = min(os.sched_getaffinity(0)), both.parent / "serving.json"
    options = [f"--cores={core}", "--pairs=1", "--max-tokens=8"]
    main([f"--config={both}", f"--prompts={both.parent / 'prompts.jsonl'}", f"--out={out}", *options])
    found = json.loads(out.read_text())["speed"]
    assert [(one["mode"], one["identical"]) for one in found] == [("whole", 1), ("streamed", 1)]
