"""The KubeRay manifest, offline: current, well formed, and able to place every replica of the config."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from jsonschema import Draft202012Validator
from pydantic import BaseModel
from ray.serve import Application
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve.config import HTTPOptions, gRPCOptions
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

from deployments.app import build, ingress_options, pool_options, target_options
from deployments.config import AppConfig, load_config
from deployments.config_replica import Autoscaling
from deployments.session import SERVE_SETTINGS
from k8s import render

SCHEMA = render.ROOT.parent / "shared" / "kuberay" / "rayservice_v1.schema.json"
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    documents = list(yaml.safe_load_all(render.MANIFEST.read_text(encoding="utf-8")))
    assert len(documents) == 1
    document: dict[str, Any] = documents[0]
    return document


@pytest.fixture(scope="module")
def serve_config(manifest: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    return config


@pytest.fixture(scope="module")
def config(serve_config: dict[str, Any]) -> AppConfig:
    return AppConfig.model_validate(serve_config["applications"][0]["args"])


@pytest.fixture(scope="module")
def groups(manifest: dict[str, Any]) -> dict[str, Any]:
    cluster = manifest["spec"]["rayClusterConfig"]
    return {group["groupName"]: group for group in cluster["workerGroupSpecs"]}


def containers(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = manifest["spec"]["rayClusterConfig"]
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [container for pod in pods for container in pod["template"]["spec"]["containers"]]


def test_the_manifest_is_rendered_from_the_demo_config() -> None:
    manifest = render.MANIFEST.read_text(encoding="utf-8")
    assert render.rendered(manifest, load_config(render.CONFIG)) == manifest, "run python -m k8s.render"


def test_a_changed_config_would_be_noticed() -> None:
    manifest = render.MANIFEST.read_text(encoding="utf-8")
    config = load_config(render.CONFIG)
    target = config.targets[0].model_copy(update={"max_batch": 3})
    changed = render.rendered(manifest, config.model_copy(update={"targets": (target, *config.targets[1:])}))
    assert changed != manifest
    assert render.rendered(changed, config) == manifest


def test_a_manifest_without_a_place_for_the_config_is_refused() -> None:
    with pytest.raises(SystemExit, match="0 serveConfigV2 blocks"):
        render.rendered("spec:\n", load_config(render.CONFIG))


@pytest.mark.skipif(not SCHEMA.exists(), reason=f"KubeRay's schema is not at hand ({SCHEMA.name})")
def test_the_manifest_obeys_kuberays_schema(manifest: dict[str, Any]) -> None:
    validator = Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
    assert [error.message for error in validator.iter_errors(manifest)] == []
    manifest = json.loads(json.dumps(manifest))
    manifest["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
    assert any("imagee" in error.message for error in validator.iter_errors(manifest))


def test_names_and_counts_are_what_the_operator_takes(manifest: dict[str, Any], groups: dict[str, Any]) -> None:
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayService")
    for name in (manifest["metadata"]["name"], *groups):
        assert DNS_1035.fullmatch(name)
        assert len(name) <= 40
    for group in groups.values():
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert manifest["spec"]["upgradeStrategy"]["type"] == "NewCluster"  # gRPC cannot follow an incremental one
    version = manifest["spec"]["rayClusterConfig"]["rayVersion"]
    assert version.rsplit(".", 1)[0] == ray.__version__.rsplit(".", 1)[0]


def unknown_keys(serve_config: dict[str, Any]) -> Iterator[str]:
    """Serve ignores keys that it does not know, so a typo would go unseen."""
    yield from strangers(serve_config, ServeDeploySchema)
    yield from strangers(serve_config["http_options"], HTTPOptions)
    yield from strangers(serve_config["grpc_options"], gRPCOptions)
    for application in serve_config["applications"]:
        yield from strangers(application, ServeApplicationSchema)


def strangers(section: dict[str, Any], model: type[BaseModel]) -> set[str]:
    return set(section) - set(model.model_fields)


def test_the_serve_config_holds_no_key_that_serve_would_ignore(serve_config: dict[str, Any]) -> None:
    assert list(unknown_keys(serve_config)) == []
    ServeDeploySchema.model_validate(serve_config)
    assert list(unknown_keys(serve_config | {"proxy_locaton": 1, "http_options": {"prot": 1}})) == [
        "proxy_locaton",
        "prot",
    ]


def test_everything_that_is_imported_by_name_can_be(serve_config: dict[str, Any]) -> None:
    module, _, attribute = serve_config["applications"][0]["import_path"].partition(":")
    assert getattr(importlib.import_module(module), attribute) is build
    for path in serve_config["grpc_options"]["grpc_servicer_functions"]:
        module, _, attribute = path.rpartition(".")
        assert callable(getattr(importlib.import_module(module), attribute))


def test_serve_builds_the_application_from_the_arguments(serve_config: dict[str, Any]) -> None:
    arguments = serve_config["applications"][0]["args"]
    assert isinstance(call_user_app_builder_with_args_if_necessary(build, arguments), Application)


def test_the_arguments_are_the_demo_config_but_for_places(config: AppConfig) -> None:
    demo = load_config(render.CONFIG)
    assert [target.name for target in config.targets] == [target.name for target in demo.targets]
    assert [target.speculation for target in config.targets] == [target.speculation for target in demo.targets]
    assert config.pool is not None
    assert config.pool.host == config.ingress.host == "node"  # targets are in other pods
    for path in [*(target.path for target in config.targets), config.pool.path]:
        inside = Path(path).relative_to(render.IMAGE_ROOT)
        assert inside.parts[:2] == ("demo", "models")


def test_every_pod_gets_a_replica_and_every_replica_a_pod(config: AppConfig, groups: dict[str, Any]) -> None:
    """A worker pod without a replica has no proxy and never gets ready; a replica without a pod never starts."""
    assert config.pool is not None
    for name, resource, parts in (
        ("targets", render.TARGET_RESOURCE, config.targets),
        ("drafters", render.DRAFTER_RESOURCE, (config.pool,)),
    ):
        group = groups[name]
        offered = json.loads(json.loads(group["rayStartParams"]["resources"]))
        assert offered == {resource: 1}
        assert all(part.resources == {resource: 1.0} for part in parts)
        assert group["replicas"] == sum(part.num_replicas for part in parts)
        cpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
        spare = [cpus - part.threads for part in parts]
        assert min(spare) >= 0
        has_room_for_ingress = max(spare) >= config.ingress.num_cpus
        assert has_room_for_ingress == (name == "targets")


def test_ports_are_those_of_the_serve_config(manifest: dict[str, Any], serve_config: dict[str, Any]) -> None:
    for container in containers(manifest):
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports["serve"] == serve_config["http_options"]["port"]
        assert ports["serve-grpc"] == serve_config["grpc_options"]["port"]
        assert "metrics" in ports
    assert serve_config["http_options"]["host"] == "0.0.0.0"


def test_the_head_holds_no_replica(manifest: dict[str, Any]) -> None:
    assert manifest["spec"]["rayClusterConfig"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_pods_outlive_the_streams_they_serve(manifest: dict[str, Any], config: AppConfig) -> None:
    options = [pool_options(config), ingress_options(config), *map(target_options, config.targets)]
    longest = max(option["graceful_shutdown_timeout_s"] for option in options)
    cluster = manifest["spec"]["rayClusterConfig"]
    for pod in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert pod["template"]["spec"]["terminationGracePeriodSeconds"] > longest
    assert manifest["spec"]["rayClusterDeletionDelaySeconds"] > longest


def test_containers_ask_for_what_they_get_and_name_an_image_by_tag(manifest: dict[str, Any]) -> None:
    for container in containers(manifest):
        assert container["resources"]["requests"] == container["resources"]["limits"]
        name, _, tag = container["image"].partition(":")
        assert (name, bool(tag), tag == "latest") == ("draftpool", True, False)
        assert not container["securityContext"]["allowPrivilegeEscalation"]


def test_there_is_no_secret_in_the_manifest(manifest: dict[str, Any]) -> None:
    for container in containers(manifest):
        assert {variable["name"]: variable["value"] for variable in container["env"]} == SERVE_SETTINGS
    assert not re.search(r"password|secretKey|apiKey|hf_[A-Za-z0-9]{8}", render.MANIFEST.read_text(encoding="utf-8"))
    assert manifest["spec"]["rayClusterConfig"]["authOptions"] == {"mode": "token"}


def test_the_keys_come_from_a_secret_that_the_pods_of_the_ingress_see(
    config: AppConfig, groups: dict[str, Any]
) -> None:
    assert (config.access.open, config.http.host) == (False, "127.0.0.1")  # the proxies' host is Serve's
    pod = groups["targets"]["template"]["spec"]
    (volume,), (container,) = pod["volumes"], pod["containers"]
    assert volume == {"name": "keys", "secret": {"secretName": "draftpool-keys"}}  # and not optional
    (mount,) = container["volumeMounts"]
    assert (mount["name"], mount["readOnly"]) == (volume["name"], True)
    files = [config.access.keys_file, config.access.admin_keys_file]
    assert files == [f"{mount['mountPath']}/{name}" for name in ("api-keys", "admin-keys")]
    command = re.search(r"kubectl create secret .*", render.MANIFEST.read_text(encoding="utf-8"))
    assert command is not None
    assert re.findall(r"--from-file=([^=]+)=", command[0]) == ["api-keys", "admin-keys"]
    assert command[0].split()[4] == "draftpool-keys"
    assert "volumes" not in groups["drafters"]["template"]["spec"]


def test_nobody_reaches_rays_ports_and_the_links_but_the_pods_and_the_operator(
    manifest: dict[str, Any], config: AppConfig
) -> None:
    policy = yaml.safe_load((render.ROOT / "k8s" / "networkpolicy.yaml").read_text(encoding="utf-8"))
    spec, cluster = policy["spec"], manifest["spec"]["rayClusterConfig"]
    assert spec["policyTypes"] == ["Ingress"]
    for pod in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert spec["podSelector"]["matchLabels"].items() <= pod["template"]["metadata"]["labels"].items()
    among, callers, operator = spec["ingress"]
    assert among == {"from": [{"podSelector": spec["podSelector"]}]}
    assert [port["port"] for port in callers["ports"]] == [render.HTTP_PORT, render.GRPC_PORT]
    assert "from" in operator
    open_ports = {port["port"] for rule in (callers, operator) for port in rule["ports"]}
    assert config.pool is not None
    assert not open_ports & {6379, 10001, *range(config.pool.ports[0], config.pool.ports[1] + 1)}


def test_a_config_that_scales_by_load_keeps_that_on_a_cluster(config: AppConfig) -> None:
    """Serve builds it from its file's arguments; the pods are the operator's to add (docs/operations.md)."""
    scaling = Autoscaling(max_replicas=3)
    target = config.targets[0].model_copy(update={"autoscaling": scaling})
    written = render.arguments(render.on_cluster(config.model_copy(update={"targets": (target,)})))
    assert written["targets"][0]["autoscaling"] == {"max_replicas": 3}
    assert isinstance(call_user_app_builder_with_args_if_necessary(build, written), Application)
