"""The measurement itself, on tiny models: the cases are what they claim to be. Ratios mean nothing at this size."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench import degraded
from bench.degraded import Degraded
from tests.deployments.checkpoints import make_family

PLAIN = Degraded("large", "plain", [100.0] * 3, [100.0] * 3, 1.0)
LATE = Degraded("large", "late", [96.0] * 3, [100.0] * 3, 1.0, missed=3)
SMALL = Degraded("large", "small", [96.0] * 3, [100.0] * 3, 1.0, busy=20, drafted=12, accepted=5)


@pytest.mark.timeout(120)
@pytest.mark.slow
def test_late_and_small_pools_are_real_and_change_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family, out = make_family(tmp_path), tmp_path / "degraded.json"
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "def add(a, b): return a"}\n')
    argv = ["degraded", "--target", str(family / "large"), "--drafter", str(family / "drafter"), f"--out={out}"]
    argv += [f"--prompts={tmp_path / 'prompts.jsonl'}", "--pairs=2", "--max-tokens=40", "--deadline-ms=40"]
    monkeypatch.setattr("sys.argv", argv)
    status = degraded.main()
    rows = json.loads(out.read_text())["rows"]
    plain, late, small = rows
    assert [row["identical"] for row in rows] == [1.0] * 3
    assert plain["drafted"] == 0
    assert late["missed"] >= 3
    assert late["accepted"] == 0
    assert min(small["busy"], small["accepted"]) > 0
    assert status == (0 if all(row["passed"] for row in rows) else 1)


def test_the_median_over_repetitions_must_reach_the_bar() -> None:
    assert all(row.passed for row in (PLAIN, LATE, SMALL))
    assert replace(LATE, rates=[96.0, 50.0, 96.0]).passed
    assert not replace(LATE, rates=[50.0, 96.0, 50.0]).passed


@pytest.mark.parametrize(
    "row",
    [
        replace(LATE, missed=0),
        replace(LATE, accepted=1),
        replace(SMALL, busy=0),
        replace(PLAIN, drafted=1),
        replace(SMALL, identical=0.99),
    ],
)
def test_a_case_that_was_not_one_or_changed_a_text_fails(row: Degraded) -> None:
    assert not row.passed
