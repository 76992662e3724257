"""Served against offline: the offline process is the same engine on the same cores, and pairs are neighbours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from api.text import decode
from bench.offline import OfflineEngine, Timing
from bench.served import in_turn, plain_config, row
from cli.demo_command import CONFIG
from deployments.config import AppConfig, TargetConfig, load_config
from protocol.errors import ConfigError
from protocol.request import SamplingParams
from tests.api.api_twins import tiny_tokenizer
from tests.deployments.checkpoints import make_family
from tests.deployments.served import expected, plain_engine

PROMPTS = ["def add(a, b):", "import os", "class Tree:"]
APP = "targets: [{name: large, path: large, dtype: fp32, page_size: 16, kv_mb: 8}]\n"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_family(tmp_path_factory.mktemp("family")) / "app.yaml"
    path.write_text(APP)
    return path


def target(app: Path, **changes: object) -> TargetConfig:
    return load_config(app).targets[0].model_copy(update={"max_batch": 2, **changes})


def test_the_offline_process_gives_the_plain_loop_s_text_on_its_cores(app: Path) -> None:
    core = min(os.sched_getaffinity(0))
    with OfflineEngine(target(app, cores=(core,)), PROMPTS, max_tokens=12) as offline:
        first, second = offline.run(), offline.run()
        (child,) = psutil.Process().children()
        assert child.cpu_affinity() == [core]
    with plain_engine(app.parent / "large") as engine:
        texts = [decode(tiny_tokenizer(), expected(engine, 12, SamplingParams(0.0), prompt)) for prompt in PROMPTS]
    assert first.texts == second.texts == texts
    assert first.num_tokens == 36
    assert first.tokens_per_second == pytest.approx(36 / first.seconds)
    assert not child.is_running()


def test_an_offline_process_that_died_says_so(app: Path) -> None:
    engine = OfflineEngine(target(app, path=str(app.parent / "absent")), PROMPTS, 4)
    with engine, pytest.raises((RuntimeError, BrokenPipeError)):
        engine.run()


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

    good = row("whole", timings(90, 86, 87), timings(100, 100, 100))
    assert good.ratios == [0.9, 0.86, 0.87]
    assert (good.bar["met"], good.identical) == (True, 1.0)
    assert not row("whole", timings(84, 84, 84), timings(100, 100, 100)).bar["met"]
    assert not row("whole", timings(90, 60, 90), timings(100, 100, 100)).bar["met"]
    assert row("streamed", timings(84, 84, 84), timings(100, 100, 100)).bar["met"]


def test_the_served_target_is_plain_and_alone() -> None:
    config = plain_config(load_config(CONFIG), "small", concurrency=8, threads=2, cores=[0, 1])
    (only,) = config.targets
    assert (only.name, only.speculation, only.max_batch, only.threads, only.cores) == ("small", None, 8, 2, (0, 1))
    assert (config.pool, config.grpc) == (None, None)
    assert AppConfig.model_validate(config.model_dump()) == config


def test_a_target_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'huge'.*large, small"):
        plain_config(load_config(CONFIG), "huge", concurrency=8, threads=1, cores=[0])


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(200)
def test_the_command_measures_both_ways(app: Path) -> None:
    out, core = app.parent / "served.json", min(os.sched_getaffinity(0))
    command = [sys.executable, "-m", "bench.served", f"--config={app}", f"--out={out}", f"--cores={core}"]
    prompts = app.parent / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in PROMPTS))
    command += ["--pairs=1", f"--prompts={prompts}", "--max-tokens=8"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert out.exists(), done.stderr
    report = json.loads(out.read_text())
    assert [(one["mode"], one["identical"]) for one in report["rows"]] == [("whole", 1), ("streamed", 1)]
    assert report["engine_cores"] == [core]
    assert core not in report["other_cores"] or len(report["other_cores"]) == 1
