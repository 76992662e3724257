"""`draftpool plan` on curves made by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from deployments.config import load_config
from deployments.profile_store import keep, model_key
from router.costs import Curve
from tests.cli.commands import printed, refused
from tests.deployments.checkpoints import config_beside, with_another_tokenizer
from tests.router.curves import curves

CONFIG = """
targets:
  - {name: large, path: large, dtype: fp32, speculation: {length: 4}}
  - {name: small, path: small, dtype: fp32}
pool: {path: drafter, dtype: fp32}
"""


@pytest.fixture
def config(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("deployments.profile_store.cache_directory", lambda: tmp_path / "cache")
    return config_beside(family, tmp_path, CONFIG)


def keep_curves(config: Path) -> None:
    """Of both targets, and of the drafter, whose exits are 2 and 4."""
    loaded, hand = load_config(config), curves(token=0.02, link=0.3, overhead=0.2)
    assert loaded.pool is not None
    assert hand.drafter is not None
    for target in loaded.targets:
        keep(replace(hand.target, key=model_key(target, target)))
    draft = hand.drafter.draft
    points = (draft.points[0], (2.0, 4.0), *draft.points[2:])
    ms = [draft.at(n, d, k, j) for n in points[0] for d in points[1] for k in points[2] for j in points[3]]
    key = model_key(loaded.pool, loaded.pool)
    keep(replace(hand.drafter, key=key, draft=Curve(draft.axes, points, tuple(ms))))


def rows(output: str) -> list[list[str]]:
    """Cells of the first table's lines."""
    output = output.split("by placement")[0]
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if line.startswith("│")]


def test_every_arm_is_printed_with_what_it_would_bring_and_the_choice_is_marked(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep_curves(config)
    output = printed(capsys, "plan", str(config), "--batch", "2", "--acceptance", "2:0.7,4:0.9")
    assert "large: rounds of 2 rows at 256 tokens, in ms" in output
    found = rows(output)
    assert [row[1] for row in found] == ["off"] + ["depth 2"] * 4 + ["depth 4"] * 4
    assert [row[2] for row in found[1:5]] == ["1", "2", "3", "4"]
    (chosen,) = [row for row in found if row[0]]
    speeds = [float(row[-1]) for row in found]
    assert float(chosen[-1]) == max(speeds)
    one = found[1]
    assert [float(cell) for cell in one[3:7]] == pytest.approx([0.42, 1.28, 0.2, 3.4], abs=0.006)
    assert speeds[1] == pytest.approx(1e3 * 3.4 / (0.42 + 1.28 + 0.2), rel=0.01)


def test_a_drafter_in_the_targets_own_process_costs_no_link(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep_curves(config)
    there = [float(row[3]) for row in rows(printed(capsys, "plan", str(config)))]
    config.write_text(CONFIG + "placement: colocated\n")
    here = [float(row[3]) for row in rows(printed(capsys, "plan", str(config)))]
    assert len(there) == len(here)
    assert [a - b for a, b in zip(there, here, strict=True)] == pytest.approx([0.0] + [0.3] * 8, abs=0.011)


def test_rounds_ahead_are_shown_where_a_replica_would_have_them(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not where the config says off, the drafter has another tokenizer, or a moving average chooses."""
    drafts, pool = "speculation: {length: 4}", "pool: {path: drafter"
    with_another_tokenizer(config.parent / "drafter", config.parent / "other")
    for old, new, ahead in (
        (drafts, drafts, True),
        (drafts, "speculation: {length: 4, ahead: off}", False),
        (drafts, "speculation: {length: 4, policy: ema}", False),
        (pool, "pool: {path: ./other", False),
    ):
        config.write_text(CONFIG.replace(old, new))
        keep_curves(config)
        output = printed(capsys, "plan", str(config))
        assert "separate, in turn" in output
        assert ("separate, ahead" in output) is ahead
    config.write_text(CONFIG.replace(drafts, "speculation: {ahead: on}").replace(pool, "pool: {path: ./other"))
    assert "leave ahead: on out" in refused(capsys, "plan", str(config))


def test_short_sequences_and_hopeless_drafts_turn_speculation_off(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep_curves(config)
    plan = ("plan", str(config))
    assert [row[:3] for row in rows(printed(capsys, *plan, "--remaining", "1"))] == [["→", "off", "0"]]
    assert [row[1] for row in rows(printed(capsys, *plan, "--acceptance", "2:0,4:0")) if row[0]] == ["off"]
    output = printed(capsys, *plan, "--target", "small")
    assert [row[2] for row in rows(output) if row[1] == "depth 2"] == [str(n) for n in range(1, 13)]
    assert "target small does not choose itself: its policy is not adaptive" in output


def test_a_refusal_names_the_remedy(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = ("plan", str(config))
    missing = refused(capsys, *plan)
    assert f"what target large costs here is not known yet; run draftpool profile {config}" in missing
    keep_curves(config)
    for argument, words in {
        "--target=huge": "--target 'huge' is not in the config; it has large, small",
        "--acceptance=3:0.5": "--acceptance names depth 3; the drafter has the exits 2, 4",
        "--acceptance=often": "is not DEPTH:RATE,..., such as 2:0.6",
        "--acceptance=2:1.5": "'1.5' is not a number from 0 to 1",
    }.items():
        assert words in refused(capsys, *plan, argument)
    config.write_text(CONFIG.split("pool:")[0].replace(", speculation: {length: 4}", ""))
    assert "there is no pool to draft; add one" in refused(capsys, *plan)
