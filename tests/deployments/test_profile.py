"""`draftpool profile` on a tiny family: the command as it stands, and the arithmetic of its sweeps."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from cli.main import main
from deployments.colocated import open_colocated
from deployments.config import load_config
from deployments.config_replica import Placement
from deployments.models import load_drafter, load_model
from deployments.placement import pool_of
from deployments.process import pinned_process
from deployments.profile_store import find, fingerprint, keep, model_key, write
from deployments.profiling import startup_drafter_costs, startup_target_costs
from deployments.sweep import checked_sweep, held_back, measure_interleaved, median_error, midpoints, sweep, thin
from model.cores import usable_cores
from protocol.errors import ConfigError
from router.cost_files import cache_name, loads
from router.costs import Curve, DrafterCosts, TargetCosts
from tests.deployments.checkpoints import config_beside

CONFIG = """
targets:
  - {name: large, path: large, dtype: fp32, page_size: 16, kv_mb: 4, max_batch: 2, speculation: {}}
  - {name: small, path: small, dtype: fp32, page_size: 16, kv_mb: 4, max_batch: 1}
pool: {path: drafter, dtype: fp32, page_size: 16, kv_mb: 4, max_rows: 2}
"""


@pytest.fixture
def config(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("deployments.profile_store.cache_directory", lambda: tmp_path / "cache")
    return config_beside(family, tmp_path, CONFIG)


def test_a_config_is_measured_shown_and_kept(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = config.parent / "curves.json"
    assert main(["profile", str(config), "--repeat", "1", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for text in ("large: verify, ms", "small: verify, ms", "pool: draft, ms"):
        assert text in printed
    assert printed.count("median error of held-back") == 3
    large, small = loads(out.read_text(), "out")
    assert (large.name, small.name) == ("large", "small")
    assert small.drafter is None
    assert large.drafter is not None
    assert large.target.verify.points == ((1, 2), (1, 2, 3, 5, 6, 9), (64, 256, 503))
    assert large.drafter.draft.points == ((1, 2), (2, 4), (1, 4, 16), (1, 5))
    assert 0 < large.verify_ms(2, 6, 100) < 1e3
    assert 0 < large.draft_ms(2, 4, 4) < 1e3
    assert large.link_ms(1) > 0
    assert large.overhead_ms(1) > 0
    assert large.prefill_ms(512) > 0
    loaded = load_config(config)
    assert loaded.pool is not None
    keys = [model_key(each, each) for each in (*loaded.targets, loaded.pool)]
    assert [find(TargetCosts, key) for key in keys] == [large.target, small.target, None]
    assert [find(DrafterCosts, key) for key in keys] == [None, None, large.drafter]
    kept = sorted(path.name for path in (config.parent / "cache" / "profiles").iterdir())
    assert len(kept) == 3
    assert all(name in printed for name in (*kept, str(out)))


def test_a_colocated_drafter_on_its_targets_kv_is_priced_without_prompts(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The large target drafts for itself; the small one is another model, for which the same drafter reads prompts."""
    monkeypatch.setattr("deployments.profile_store.cache_directory", lambda: tmp_path / "cache")
    speculates = CONFIG.replace("max_batch: 1", "max_batch: 1, speculation: {}")
    text = speculates.replace("path: drafter", "path: large").replace(", kv_mb: 4, max_rows: 2}", ", max_rows: 2}")
    config = config_beside(family, tmp_path, f"placement: colocated\n{text}")
    out = tmp_path / "curves.json"
    assert main(["profile", str(config), "--repeat", "1", "--out", str(out)]) == 0
    assert capsys.readouterr().out.count("pool: draft, ms") == 2
    own, other = (one.drafter for one in loads(out.read_text(), "out"))
    assert own is not None
    assert other is not None
    assert (own.draft.points[2], own.link.ms) == ((1,), (0,)), "nothing is handed over, and there is no link"
    assert other.draft.points[2] == (1, 4, 16)
    assert own.key != other.key
    for name in ("large", "small"):
        assert main(["plan", str(config), "--target", name]) == 0
    loaded = load_config(config)
    target, pool = loaded.targets[0], pool_of(loaded, loaded.targets[0])
    assert pool is not None
    model = load_model(target)
    drafter = open_colocated(model, target, pool, "here", 1.0, measured=True)
    assert drafter.costs == own, "a replica that starts finds what was profiled"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["profile", *arguments]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    return captured.err


def test_a_missing_config_or_folder_is_reported_before_anything_is_loaded(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "cannot read none.yaml" in refused(capsys, "none.yaml")
    nowhere = str(config.parent / "nowhere" / "out.json")
    assert "there is no folder" in refused(capsys, str(config), "--out", nowhere)
    shutil.rmtree(config.parent / "cache", ignore_errors=True)
    with pytest.raises(ConfigError, match="name an existing, writable folder"):
        write(Path(nowhere), "")


def test_a_file_from_another_version_is_refused_when_it_is_looked_up(config: Path) -> None:
    target = load_config(config).targets[0]
    key = model_key(target, target)
    folder = config.parent / "cache" / "profiles"
    folder.mkdir(parents=True)
    (folder / cache_name(TargetCosts, key)).write_text('{"schema_version": 0}')
    with pytest.raises(ConfigError, match="schema_version 0 is not 2; run draftpool profile again"):
        find(TargetCosts, key)


def test_a_replica_measures_itself_once_and_finds_it_at_the_next_start(
    config: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "deployments.profile_store")
    loaded = load_config(config)
    target, pool = loaded.targets[0], loaded.pool
    assert pool is not None
    model, drafter = load_model(target), load_drafter(pool)
    costs, drafts = startup_target_costs(model, target), startup_drafter_costs(drafter, pool)
    assert (costs.verify.points[0], drafts.draft.points[0]) == ((1, 2), (1, 2))
    assert model.ledger.num_free == model.ledger.num_pages
    assert drafter.ledger.num_free == drafter.ledger.num_pages
    assert (startup_target_costs(model, target), startup_drafter_costs(drafter, pool)) == (costs, drafts)
    assert caplog.text.count("measured costs in") == 2


def test_a_replica_measures_again_if_stored_costs_are_damaged_or_end_before_its_batch(
    config: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = load_config(config).targets[0]
    larger = target.model_copy(update={"max_batch": 3})
    model = load_model(larger)
    startup_target_costs(model, target)
    costs = startup_target_costs(model, larger)
    assert costs.verify.points[0][-1] == 3
    assert startup_target_costs(model, target) == costs, "more than enough"
    keep(costs).write_text("{")
    assert startup_target_costs(model, larger).verify.points == costs.verify.points
    assert "are measured again" in caplog.text
    assert find(TargetCosts, costs.key) is not None


def test_a_replica_that_cannot_store_its_costs_starts_nevertheless(
    config: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (config.parent / "file").touch()
    monkeypatch.setattr("deployments.profile_store.cache_directory", lambda: config.parent / "file")
    target = load_config(config).targets[1]
    assert startup_target_costs(load_model(target), target).verify.at(1, 1, 64) > 0
    assert "measured at every start: cannot create" in caplog.text


def test_the_key_follows_shape_dtype_and_threads_and_not_the_weights(config: Path) -> None:
    folder = config.parent
    assert fingerprint(folder / "large") == fingerprint(folder / "large")
    assert fingerprint(folder / "large") != fingerprint(folder / "small")
    assert fingerprint(folder / "large") != fingerprint(folder / "drafter"), "it has other exits"
    target = load_config(config).targets[0]
    others = ({"threads": 2}, {"dtype": "bf16"}, {"execution": "eager"}, {"kv_mb": 2})
    keys = [model_key(each, each) for each in (target, *(target.model_copy(update=change) for change in others))]
    assert keys[0] not in keys[1:4]
    assert keys[0] == keys[4]
    assert torch.__version__ in keys[0].versions


def test_sweeps_run_all_cells_in_turn_back_and_forth_and_the_first_does_not_count() -> None:
    seen: list[tuple[int, ...]] = []

    def run(cell: tuple[int, ...]) -> float:
        seen.append(cell)
        return cell[0] + (100.0 if len(seen) <= 3 else 0.0) + (50.0 if len(seen) == 5 else 0.0)

    cells = [(1,), (2,), (3,)]
    assert measure_interleaved(run, cells, 3, "test") == [1.0, 2.0, 3.0]
    assert seen == [*cells[::-1], *cells] * 2


def test_held_back_passes_lie_between_the_points_and_give_the_error_of_the_curve() -> None:
    assert midpoints((1, 2, 4, 8)) == (3, 6)
    assert midpoints((1, 2)) == (2,)
    assert midpoints((4,)) == (4,)
    cells = held_back(((3, 6, 12), (4, 7), (160, 640)), 12)
    assert len(set(cells)) == 12
    assert held_back(((3, 6, 12), (4, 7), (160, 640)), 4) == cells[:4]
    axes = ((1, 2, 4, 8, 16), (1, 2, 3, 5, 6, 9), (64, 256, 759), (1, 5), (7,))
    assert thin(axes, coarse=False) == axes
    assert thin(axes, coarse=True) == ((1, 4, 16), (1, 3, 6, 9), (64, 759), (1, 5), (7,))
    curve = Curve(("x",), ((1.0, 9.0),), (1.0, 9.0))
    assert median_error(curve, [(3,), (5,), (7,)], [3.0, 4.0, 7.7]) == pytest.approx(1 / 11)

    def bent(cell: tuple[int, ...]) -> float:
        return 1.0 + cell[0] + (1.0 if cell[0] == 5 else 0.0)

    curve, error = checked_sweep(bent, ("x",), ((1, 9),), ((5,),), 1, "test")
    assert curve == sweep(bent, ("x",), ((1, 9),), 1, "test")
    assert curve.ms == (2.0, 10.0)
    assert error == pytest.approx(1 / 7)


def test_a_process_is_pinned_and_restored() -> None:
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    one = min(cores)
    with pinned_process(Placement(cores=(one,), threads=len(cores) + 1)):
        assert os.sched_getaffinity(0) == {one}
        assert torch.get_num_threads() == 1, "no more than there are cores for"
    with pinned_process(Placement(threads=len(cores) + 1)):
        assert torch.get_num_threads() == usable_cores()
    assert os.sched_getaffinity(0) == cores
    assert torch.get_num_threads() == threads


def test_target_configs_need_no_pool(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = CONFIG.split("pool:")[0].replace(", speculation: {}", "")
    config.write_text(text)
    out = config.parent / "o.json"
    assert main(["profile", str(config), "--repeat", "1", "--out", str(out)]) == 0
    assert all(one["drafter"] is None for one in json.loads(out.read_text())["curves"])
    assert "pool" not in capsys.readouterr().out
