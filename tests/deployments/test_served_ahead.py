"""Targets that draft ahead, on a real local Ray cluster: their text is that of the plain loop, and they tell of it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cli.main import main
from protocol.request import SamplingParams
from targets.engine import Engine
from tests.deployments.harness import wait_until
from tests.deployments.served import GREEDY, SAMPLED, Served, expected
from tests.fixtures import CONFIG

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("nothing_leaks")]

TARGETS = ("large", "small")
PARTS = {"plan", "draft", "verify", "commit"}


@pytest.fixture(scope="module")
def config_text() -> str:
    assert CONFIG.count("deadline_ms: 500}") == 2
    return CONFIG.replace("deadline_ms: 500}", "deadline_ms: 500, ahead: on}")


def test_before_the_first_request_there_is_nothing_to_trace(
    served: Served, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["trace", served.url, "--out", str(tmp_path / "trace.json")]) == 2
    assert "has no rounds to show" in capsys.readouterr().err
    assert not (tmp_path / "trace.json").exists()


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_drafting_ahead_changes_no_text(served: Served, oracles: dict[str, Engine], sampling: SamplingParams) -> None:
    oracle = {model: expected(oracles[model], 96, sampling) for model in TARGETS}
    before = served.target("large", "stats")
    with ThreadPoolExecutor(6) as threads:
        asked = [(model, threads.submit(served.tokens, model, sampling, 96)) for model in TARGETS * 3]
        for model, answer in asked:
            assert answer.result(timeout=60) == oracle[model]
    after = served.target("large", "stats")
    assert after["num_rounds"] > before["num_rounds"]


def test_a_draft_replica_killed_while_it_drafts_ahead_changes_no_text(
    served: Served, oracles: dict[str, Engine]
) -> None:
    oracle = expected(oracles["large"], 400, SAMPLED)
    victim = served.target("large", "describe")["draft_replica"]
    with ThreadPoolExecutor(2) as threads:
        answers = [threads.submit(served.tokens, "large", SAMPLED, 400) for _ in range(2)]
        wait_until(lambda: served.target("large", "stats")["num_running"] == 2)
        served.kill_draft_replica(victim)
        assert [answer.result(timeout=60) for answer in answers] == [oracle, oracle]
    wait_until(lambda: served.target("large", "describe")["draft_replica"] not in (None, victim))


def test_the_last_rounds_are_written_as_a_trace(
    served: Served, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for model in TARGETS:
        served.tokens(model, GREEDY, 32)
    out = tmp_path / "trace.json"
    assert main(["trace", served.url, "--rounds=5", "--out", str(out)]) == 0
    assert "10 rounds in" in capsys.readouterr().out
    events = json.loads(out.read_text())["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    told = {name: [e for e in events if e["ph"] == "X" and e["pid"] == pid] for pid, name in names.items()}
    for model in TARGETS:
        own = told[f"{model} 0"]
        wholes = [event for event in own if event["name"].startswith("round ")]
        assert len(wholes) == 5
        assert all(event["args"]["committed"] >= 1 for event in wholes)
    pools = [told[name] for name in told if name.startswith("pool ")]
    assert any(event["name"] == "pass" and event["args"]["rows"] for own in pools for event in own)
    assert main(["trace", served.url, "--rounds=1024", "--out", str(out)]) == 0
    assert {event["name"] for event in json.loads(out.read_text())["traceEvents"]} >= PARTS


def test_operators_see_how_drafting_ahead_goes(served: Served) -> None:
    served.tokens("large", GREEDY, 64)
    (counts,) = served.get("/debug/stats")["targets"]["large"]
    assert counts == served.target("large", "stats")
    assert counts["num_rounds"] > 0
    assert counts["ratios"]["hit_rate"] is None or 0 <= counts["ratios"]["hit_rate"] <= 1
