from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.config import AppConfig, GrpcConfig, HttpConfig, IngressConfig, PoolConfig, TargetConfig, load_config
from deployments.config_access import AccessConfig
from deployments.config_speculation import (
    EmaSpeculation,
    FixedSpeculation,
    GoodputSpeculation,
)
from deployments.config_telemetry import TelemetryConfig
from protocol.errors import ConfigError
from tests.deployments.test_config_speculation import speculation

DEMO = Path(__file__).parents[2] / "deployments" / "configs" / "demo.yaml"


def write(folder: Path, text: str) -> Path:
    path = folder / "app.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(folder: Path, text: str) -> str:
    path = write(folder, text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert str(error.value).startswith(str(path))
    return str(error.value).removeprefix(f"{path}: ")


def test_the_demo_config_loads_and_names_the_demo_models() -> None:
    config = load_config(DEMO)
    assert [target.name for target in config.targets] == ["large", "small"]
    assert config.pool is not None
    assert config.pool.num_replicas == 2
    models = DEMO.parents[2] / "demo" / "models"
    assert [target.path for target in config.targets] == [str(models / "large"), str(models / "small")]
    assert (config.http.host, config.http.port) == ("127.0.0.1", 8000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: 1\ntargets: [{name: a, path: x}]",
            "a: unknown key (value 1); choose one of access, grpc, http, ingress, placement, pool, t",
        ),
        ("targets: [{name: a, path: x, thredas: 3}]", "targets[0].thredas: unknown key (value 3); did you mean thread"),
        (
            "targets: [{name: a, path: x}]\npool: {path: x, resources: {gpu: many}}",
            "pool.resources.gpu: Input should be a valid number, unable to parse string as a number, got 'many'",
        ),
        (
            "targets: [{name: a, path: x}]\npool: {path: x, num_replicas: 0}",
            "pool.num_replicas: Input should be greater than or equal to 1, got 0",
        ),
        ("targets: [{name: a}]", "targets[0].path: missing; add it"),
        ("targets: [{name: a, path: x, resources: {1: 2}}]", "targets[0].resources[1]: Input should be a valid string"),
        ("targets: []", "targets: Tuple should have at least 1 item"),
        ("{}", "targets: missing; add it"),
        ("- 1", "the config: a mapping of keys is needed, got [1]"),
        ("", "the config: a mapping of keys is needed, got None"),
        (
            "targets: [{name: a, path: x, speculation: {}}]",
            "the config: target a speculates but there is no pool; add one, or speculation: off",
        ),
        ("targets: [{name: a, path: x}, {name: a, path: y}]", "the config: two targets are called a"),
        ("targets: [{name: a b, path: x}]", "targets[0].name: String should match pattern"),
        (
            "targets: [{name: a, path: x}]\npool: {path: x, ports: [9, 3]}",
            "pool.ports: [9, 3] is not a range of ports; set [first, last]",
        ),
        (
            "targets: [{name: a, path: x}]\npool: {path: x, num_replicas: 2, cores: [1]}",
            "pool: cores [1] would pin all 2 replicas to the same CPUs",
        ),
        (
            "targets: [{name: a, path: x, num_gpus: 4}]",
            "targets[0].num_gpus: a replica runs on one GPU, and 4 is more; set 1, and raise num_replicas",
        ),
        (
            "targets: [{name: a, path: x}]\npool: {path: x, num_gpus: 1.5}",
            "pool.num_gpus: a replica runs on one GPU, and 1.5 is more",
        ),
        (
            "placement: beside\ntargets: [{name: a, path: x}]",
            "placement: Input should be 'separate' or 'colocated', got 'beside'",
        ),
        (
            "placement: colocated\ntargets: [{name: a, path: x, speculation: {ahead: on}}]\npool: {path: x}",
            "the config: target a is to be drafted for while it verifies, but with placement: colocated that",
        ),
        (
            "placement: colocated\ntargets: [{name: a, path: x}]\npool: {path: x, threads: 2}",
            "the config: pool.threads has no effect with placement: colocated, where drafts use the target's threads",
        ),
    ],
)
def test_a_mistake_is_named_with_its_key_value_and_remedy(tmp_path: Path, text: str, message: str) -> None:
    assert refused(tmp_path, text).startswith(message)


@pytest.mark.parametrize(
    ("speculation", "message"),
    [
        (
            "{depth: 2, length: 4}",
            ".depth: belongs to policy fixed, this is goodput; set policy: fixed",
        ),
        ("{policy: fixed, depth: 2, exits: [2, 4]}", ".exits: belongs to policy goodput or ema, this is fixed"),
        (
            "{policy: fixed, depth: 2, tree: true}",
            ".tree: unknown key (value True); choose one of",
        ),
        (
            "{policy: fastest}",
            ".policy: 'fastest' is not a policy; choose one of goodput, ema, fixed, or specul",
        ),
        ("{policy: off, length: 3}", ".policy: False is not a policy; choose one of"),
        ("4", ": a mapping of keys is needed, got 4"),
        ("{policy: fixed, depth: 2, lenght: 3}", ".lenght: unknown key (value 3); did you mean length?"),
        ("{lenght: 3}", ".lenght: unknown key (value 3); did you mean length?"),
        ("{policy: fixed}", ".depth: missing; add it"),
        (
            "{policy: fixed, depth: many}",
            ".depth: Input should be a valid integer, unable to parse string as an integer, got 'many'; give an exit "
            "of the drafter, counted in layers",
        ),
        ("{policy: fixed, depth: 0}", ".depth: Input should be greater than or equal to 1, got 0"),
        ("{exits: [4, 2]}", ".exits: exits [4, 2] must ascend"),
        ("{length: 65}", ".length: Input should be less than or equal to 64, got 65"),
        ("{ahead: 4}", ".ahead: Input should be a valid boolean, unable to interpret input, got 4"),
        ("{policy: ema, ahead: on}", ".ahead: policy: ema drafts in turn only; leave ahead out"),
    ],
)
def test_a_mistake_in_speculation_names_the_policy_that_has_the_key(
    tmp_path: Path, speculation: str, message: str
) -> None:
    text = f"targets: [{{name: a, path: x, speculation: {speculation}}}]\npool: {{path: x}}"
    assert refused(tmp_path, text).startswith(f"targets[0].speculation{message}")


def test_several_mistakes_are_all_named_and_nothing_else(tmp_path: Path) -> None:
    message = refused(tmp_path, "targets: [{name: a, path: x, foo: 1}]\nhttp: {port: 70000}")
    assert [clause.split(":")[0] for clause in message.split("; ") if ":" in clause] == ["targets[0].foo", "http.port"]


def test_a_file_that_is_missing_or_not_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not YAML"):
        load_config(write(tmp_path, "{"))
    with pytest.raises(ConfigError, match=r"cannot read .*none.yaml: No such file .*; name an existing YAML file"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize("value", ["off", "false", "null", '"off"', "{policy: off}"])
def test_speculation_can_be_off(tmp_path: Path, value: str) -> None:
    config = load_config(write(tmp_path, f"targets: [{{name: a, path: x, speculation: {value}}}]"))
    assert config.targets[0].speculation is None


def test_relative_paths_belong_to_the_folder_of_the_file_and_hub_ids_stay(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    paths = ["here", "./not-yet", "/absolute", "meta-llama/Llama-2-7b-hf"]
    targets = [{"name": f"t{index}", "path": path} for index, path in enumerate(paths)]
    config = load_config(write(tmp_path, yaml.safe_dump({"targets": targets})))
    assert [target.path for target in config.targets] == [
        str(tmp_path / "here"),
        str(tmp_path / "not-yet"),
        "/absolute",
        "meta-llama/Llama-2-7b-hf",
    ]


@pytest.mark.parametrize(
    "values",
    [
        {"policy": "fixed", "depth": 4, "length": 3},
        {"exits": [2, 4]},
        {"policy": "ema", "length": 4},
        {"ahead": "off"},
        {"policy": "fixed", "depth": 2, "ahead": "on"},
        {},
    ],
)
def test_a_config_survives_the_way_through_a_serve_config_file(values: dict[str, Any]) -> None:
    """Serve hands `args` to the builder as plain values."""
    config = load_config(DEMO)
    target = config.targets[0].model_copy(update={"speculation": speculation(**values)})
    config = config.model_copy(update={"targets": (target, *config.targets[1:])})
    for exclude in (False, True):
        dumped = json.loads(json.dumps(config.model_dump(mode="json", exclude_defaults=exclude)))
        assert AppConfig.model_validate(dumped) == config


PLACEMENT = {"autoscaling", "cores", "num_gpus", "num_replicas", "resources", "threads"}
WEIGHTS = {"dtype", "execution", "kv_mb", "page_size", "path", "weights"}


def test_the_options_are_these_and_a_new_one_shows_up_in_review() -> None:
    drafted = {"ahead", "deadline_ms", "length", "policy", "request_length"}
    target = {
        "count_tokens",
        "deterministic",
        "max_batch",
        "max_model_len",
        "max_queue",
        "max_wait_s",
        "name",
        "prefill_chunk",
        "speculation",
    }
    pool = {"host", "max_rows", "ports", "prefill_chunk", "rows_per_target", "sequence_ttl_s"}
    sections = {"access", "grpc", "http", "ingress", "placement", "pool", "targets", "telemetry"}
    assert set(AppConfig.model_fields) == sections
    assert set(TelemetryConfig.model_fields) == {"logs", "otlp_endpoint"}
    assert set(TargetConfig.model_fields) == target | PLACEMENT | WEIGHTS
    assert set(FixedSpeculation.model_fields) == drafted | {"depth"}
    assert set(GoodputSpeculation.model_fields) == set(EmaSpeculation.model_fields) == drafted | {"exits"}
    assert set(PoolConfig.model_fields) == pool | PLACEMENT | WEIGHTS
    ingress = {"host", "join_ms", "num_cpus", "num_replicas", "ports", "recover_s", "reissues"}
    ingress |= {"resources", "silence_s"}
    assert set(IngressConfig.model_fields) == ingress
    assert set(HttpConfig.model_fields) == {"host", "port", "request_timeout_s", "cors_origins", "heartbeat_s"}
    assert set(GrpcConfig.model_fields) == {"port", "request_timeout_s", "reflection"}
    assert set(AccessConfig.model_fields) == {"open", "keys_file", "admin_keys_file"}
