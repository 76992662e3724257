from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.config import (
    AppConfig,
    GrpcConfig,
    HttpConfig,
    IngressConfig,
    PoolConfig,
    SpeculationConfig,
    TargetConfig,
    load_config,
)
from protocol.errors import ConfigError
from protocol.plan import DepthRule

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
        ("a: 1\ntargets: [{name: a, path: x}]", "a: unknown key (value 1); choose one of grpc, http, ingress, pool, t"),
        ("targets: [{name: a, path: x, thredas: 3}]", "targets[0].thredas: unknown key (value 3); did you mean thread"),
        (
            "targets: [{name: a, path: x, speculation: {depth: 2, lenght: 3}}]\npool: {path: x}",
            "targets[0].speculation.lenght: unknown key (value 3); did you mean length?",
        ),
        (
            "targets: [{name: a, path: x}]\npool: {path: x, num_replicas: 0}",
            "pool.num_replicas: Input should be greater than or equal to 1, got 0",
        ),
        ("targets: [{name: a}]", "targets[0].path: missing; add it"),
        ("targets: []", "targets: Tuple should have at least 1 item"),
        ("{}", "targets: missing; add it"),
        ("- 1", "the config: a mapping of keys is needed, got [1]"),
        ("", "the config: a mapping of keys is needed, got None"),
        (
            "targets: [{name: a, path: x, speculation: {depth: many}}]",
            "targets[0].speculation.depth: 'many' is no depth; give an exit of the drafter",
        ),
        (
            "targets: [{name: a, path: x, speculation: {depth: cascade, thresholds: [0.5]}}]\npool: {path: x}",
            "targets[0].speculation: 3 exits take 2 thresholds, 1 were given",
        ),
        (
            "targets: [{name: a, path: x, speculation: {depth: cascade, exits: [4, 2], thresholds: [0.5]}}]",
            "targets[0].speculation: exits [4, 2] must ascend",
        ),
        (
            "targets: [{name: a, path: x, speculation: {depth: 2}}]",
            "the config: target a speculates but there is no pool; add one, or speculation: off",
        ),
        ("targets: [{name: a, path: x}, {name: a, path: y}]", "the config: two targets are called a"),
        ("targets: [{name: a b, path: x}]", "targets[0].name: String should match pattern"),
        (
            "targets: [{name: a, path: x}]\npool: {path: x, ports: [9, 3]}",
            "pool.ports: [9, 3] is no range of ports; give [first, last]",
        ),
        (
            "targets: [{name: a, path: x}]\npool: {path: x, num_replicas: 2, cores: [1]}",
            "pool: cores [1] would bind all of num_replicas 2 to the same CPUs",
        ),
    ],
)
def test_a_mistake_is_named_with_its_key_value_and_remedy(tmp_path: Path, text: str, message: str) -> None:
    assert refused(tmp_path, text).startswith(message)


def test_several_mistakes_are_all_named_and_nothing_else(tmp_path: Path) -> None:
    message = refused(tmp_path, "targets: [{name: a, path: x, foo: 1}]\nhttp: {port: 70000}")
    assert [clause.split(":")[0] for clause in message.split("; ") if ":" in clause] == ["targets[0].foo", "http.port"]


def test_what_is_not_yaml_or_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not YAML"):
        load_config(write(tmp_path, "{"))
    with pytest.raises(ConfigError, match=r"cannot read .*none.yaml: No such file .*; name an existing YAML file"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize("value", ["off", "false", "null", '"off"'])
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


def test_depths_become_rules(tmp_path: Path) -> None:
    from deployments.target import depth_rule, policy

    def rule(**speculation: Any) -> DepthRule:
        values = {"targets": [{"name": "a", "path": "x", "speculation": speculation}], "pool": {"path": "x"}}
        made = AppConfig.model_validate(values).targets[0].speculation
        assert made is not None
        assert policy(made).length == 4
        return depth_rule(made)

    assert rule(depth=4) == DepthRule((4,))
    assert rule(depth="cascade") == DepthRule((2, 4, 6), (0.5, 0.5))
    assert rule(depth="cascade", exits=[1, 3], thresholds=[0.9]) == DepthRule((1, 3), (0.9,))


def test_a_config_survives_the_way_through_a_serve_config_file() -> None:
    """Serve hands `args` to the builder as plain values."""
    config = load_config(DEMO)
    assert AppConfig.model_validate(config.model_dump(mode="json")) == config


PLACEMENT = {"cores", "num_gpus", "num_replicas", "resources", "threads"}
WEIGHTS = {"dtype", "execution", "kv_mb", "page_size", "path"}


def test_the_options_are_these_and_a_new_one_shows_up_in_review() -> None:
    speculation = {"deadline_ms", "depth", "exits", "length", "thresholds"}
    target = {"deterministic", "max_batch", "max_model_len", "max_queue", "name", "prefill_chunk", "speculation"}
    pool = {"host", "max_rows", "ports", "prefill_chunk", "sequence_ttl_s"}
    assert set(AppConfig.model_fields) == {"grpc", "http", "ingress", "pool", "targets"}
    assert set(TargetConfig.model_fields) == target | PLACEMENT | WEIGHTS
    assert set(SpeculationConfig.model_fields) == speculation
    assert set(PoolConfig.model_fields) == pool | PLACEMENT | WEIGHTS
    assert set(IngressConfig.model_fields) == {"host", "join_ms", "num_cpus", "num_replicas", "ports", "resources"}
    assert set(HttpConfig.model_fields) == {"host", "port", "request_timeout_s"}
    assert set(GrpcConfig.model_fields) == {"port", "request_timeout_s"}
