"""A pool of its own, or a drafter in every target: what configs become, what plan predicts, and the same text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cli.main import main
from deployments.app import build
from deployments.colocated import open_colocated
from deployments.config import AppConfig, load_config
from deployments.placement import PLACES, as_placed, cpus_needed, pool_of, without_link
from deployments.profile_store import keep, model_key
from model.files import resolve
from protocol.errors import ConfigError
from router.costs import Curve
from router.policy import Fixed
from targets.engine import Engine
from targets.model import load_target
from targets.own_client import OwnDraftClient
from tests.deployments.checkpoints import config_beside
from tests.reference.engine import plain_texts, random_requests, run_all
from tests.router.curves import curves

CONFIG = """
targets:
  - {name: large, path: large, dtype: fp32, threads: 3, cores: [0], speculation: {length: 4, ahead: on}}
  - {name: small, path: small, dtype: fp32}
pool: {path: drafter, dtype: fp32, threads: 2, num_replicas: 2, page_size: 16, kv_mb: 8}
"""


@pytest.fixture
def path(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("deployments.profile_store.cache_directory", lambda: tmp_path / "cache")
    return config_beside(family, tmp_path, CONFIG)


@pytest.fixture
def config(path: Path) -> AppConfig:
    return load_config(path)


def threads(config: AppConfig) -> list[tuple[int, int]]:
    """Of each target, and of its drafter."""
    pools = [(target, pool_of(config, target)) for target in config.targets]
    return [(target.threads, pool.threads) for target, pool in pools if pool]


def test_the_same_threads_are_shared_in_turn_or_divided(config: AppConfig) -> None:
    assert threads(config) == [(3, 2), (1, 2)]
    colocated = as_placed(config, "colocated")
    assert threads(colocated) == [(5, 5), (3, 3)]
    assert threads(as_placed(colocated, "separate")) == [(4, 1), (2, 1)]
    assert as_placed(config, "separate") == config
    one = config.model_copy(update={"placement": "colocated", "targets": config.targets[1:]})
    with pytest.raises(ConfigError, match="target small has one thread, which leaves none for a separate pool"):
        as_placed(one, "separate")


def test_a_config_in_the_other_placement_is_valid(config: AppConfig) -> None:
    colocated = as_placed(config, "colocated")
    assert AppConfig.model_validate(colocated.model_dump()) == colocated
    assert [target.speculation and target.speculation.ahead for target in colocated.targets] == [None, None]


def test_a_colocated_drafter_has_no_deployment_and_no_threads_of_its_own(config: AppConfig) -> None:
    ingress = config.ingress.num_cpus
    assert cpus_needed(config) == 3 + 1 + 2 * 2 + ingress
    colocated = as_placed(config, "colocated")
    assert cpus_needed(colocated) == 5 + 3 + ingress
    for placed, is_deployed in ((config, True), (colocated, False)):
        targets, _, _, pool, *_ = build(placed)._bound_deployment.init_args
        assert (pool is not None) is is_deployed
        for target in targets.values():
            own, own_pool, drafter, _ = target._bound_deployment.init_args
            assert (own_pool is not None) is is_deployed
            assert drafter == pool_of(placed, own)


@pytest.mark.parametrize(
    ("speculation", "is_measured"),
    [("{}", True), ("{policy: ema}", True), ("{policy: fixed, depth: 2}", False), ("off", False)],
)
def test_a_draft_replica_is_measured_if_a_policy_chooses_by_what_drafts_cost(
    path: Path, speculation: str, is_measured: bool
) -> None:
    path.write_text(path.read_text().replace("{length: 4, ahead: on}", speculation))
    config = load_config(path)
    (_, measured, _) = build(config)._bound_deployment.init_args[3]._bound_deployment.init_args
    assert measured is is_measured


def keep_curves(config: AppConfig) -> None:
    """Of both targets and of the drafter, whose exits are 2 and 4; with more threads all goes faster."""
    hand = curves(token=0.02, link=0.3, overhead=0.2)
    assert hand.drafter is not None
    draft = hand.drafter.draft
    points = (draft.points[0], (2.0, 4.0), *draft.points[2:])
    ms = [draft.at(n, d, k, j) for n in points[0] for d in points[1] for k in points[2] for j in points[3]]
    for target in config.targets:
        verify = hand.target.verify
        faster = replace(verify, ms=tuple(each / target.threads for each in verify.ms))
        keep(replace(hand.target, key=model_key(target, target), verify=faster))
        pool = pool_of(config, target)
        assert pool is not None
        faster = Curve(draft.axes, points, tuple(each / pool.threads for each in ms))
        keep(replace(hand.drafter, key=model_key(pool, pool), draft=faster))


def by_placement(printed: str) -> list[list[str]]:
    lines = printed.split("by placement")[1].splitlines()
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]


def test_plan_predicts_both_placements_and_marks_the_best(
    path: Path, config: AppConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in PLACES:
        keep_curves(as_placed(config, place))
    assert main(["plan", str(path), "--batch", "2", "--acceptance", "2:0.7,4:0.9"]) == 0
    printed = capsys.readouterr().out
    found = by_placement(printed)
    assert [row[1:3] for row in found] == [
        ["separate, in turn", "3 + 2"],
        ["separate, ahead", "3 + 2"],
        ["colocated, in turn", "5"],
    ]
    rates = [float(row[-1]) for row in found]
    assert [bool(row[0]) for row in found] == [rate == max(rates) for rate in rates]
    arms = [line for line in printed.split("by placement")[0].splitlines() if line.startswith("│ →")]
    assert arms[0].split("│")[-2].strip() == found[0][-1], "the router's own choice"
    assert float(found[2][5]) < float(found[0][5]), "no link, and more threads for both"


def test_plan_says_which_command_measures_the_other_placement(
    path: Path, config: AppConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    keep_curves(config)
    assert main(["plan", str(path)]) == 0
    printed = capsys.readouterr().out
    assert [row[1] for row in by_placement(printed)] == ["separate, in turn", "separate, ahead"]
    assert "colocated is left out: what target large costs here is not known yet" in printed
    assert f"run draftpool profile {path} --placement colocated" in printed


def test_plan_finds_the_costs_that_profiling_the_other_placement_has_stored(
    path: Path, config: AppConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = "dtype: fp32, page_size: 16, kv_mb: 8"
    target = f"{{name: small, path: small, {tiny}, max_batch: 1, max_model_len: 64, speculation: {{}}}}"
    path.write_text(f"targets: [{target}]\npool: {{path: drafter, {tiny}, max_rows: 1}}\n")
    keep_curves(load_config(path))
    assert main(["profile", str(path), "--placement", "colocated", "--repeat", "1"]) == 0
    capsys.readouterr()
    assert main(["plan", str(path)]) == 0
    printed = capsys.readouterr().out
    assert by_placement(printed)[-1][1:3] == ["colocated, in turn", "2"]
    assert "left out" not in printed


def test_there_is_no_pool_to_simulate_where_drafters_are_colocated(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text("placement: colocated\ntargets: [{name: large, path: large}]\npool: {path: drafter}\n")
    assert main(["simulate", str(path), "--acceptance", "2:0.5", "--rate", "1"]) == 2
    assert "no pool to size" in capsys.readouterr().err


def test_a_target_with_its_own_drafter_writes_the_plain_text(config: AppConfig) -> None:
    target = config.targets[1]
    pool = pool_of(config.model_copy(update={"placement": "colocated"}), target)
    assert pool is not None
    model = load_target(resolve(target.path), dtype=torch.float32, num_positions=2048, page_size=16)
    own = open_colocated(model, target, pool, "engine", 10.0, measured=False)
    assert own.exits == (2, 4)
    requests = random_requests(3, 5, model.decoder.config.vocab_size, max_tokens=24)
    engine = Engine(model, Fixed(4, 3), own.client)
    assert run_all(engine, requests).tokens == plain_texts(model, requests)
    assert engine.stats().num_proposed > 0


def test_a_target_whose_drafter_is_its_own_model_drafts_on_its_own_kv_and_knows_the_cost(config: AppConfig) -> None:
    target = config.targets[0]
    assert config.pool is not None
    pool = config.pool.model_copy(update={"path": target.path, "weights": "int8"})
    model = load_target(resolve(target.path), dtype=torch.float32, num_positions=2048, page_size=16)
    own = open_colocated(model, target, pool, "engine", 10.0, measured=True)
    assert isinstance(own.client, OwnDraftClient)
    assert own.costs is not None
    assert (own.exits, own.costs.link.at(4)) == ((4,), 0.0)
    assert own.costs.draft.at(2, 4, 1, 3) == own.costs.draft.at(2, 4, 900, 3) > own.costs.draft.at(2, 4, 1, 1)
    assert model.ledger.num_free == model.ledger.num_pages
    requests = random_requests(3, 5, model.decoder.config.vocab_size, max_tokens=24)
    engine = Engine(model, Fixed(4, 3), own.client)
    assert run_all(engine, requests).tokens == plain_texts(model, requests)
    assert engine.stats().num_accepted > 0


def test_a_drafter_without_a_link_costs_as_much_otherwise() -> None:
    made = curves(link=0.3).drafter
    assert made is not None
    assert without_link(made).link.at(7) == 0.0
    assert without_link(made).draft == made.draft
