"""Writes the Serve config into k8s/rayservice.yaml: `python -m k8s.render [--check]`.

KubeRay takes the Serve config as a string inside its manifest. To keep it equal to the tested config, it is rendered
from deployments/configs/demo.yaml. On a cluster it differs in addresses that other pods can reach, paths inside the
image, files of API keys, and one custom resource per worker group, which gives every replica its own pod.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import yaml

from deployments.app import APP_NAME
from deployments.cluster import SERVICERS
from deployments.config import AppConfig, PoolConfig, TargetConfig, load_config
from deployments.config_access import AccessConfig

ROOT = Path(__file__).resolve().parent.parent
MANIFEST = ROOT / "k8s" / "rayservice.yaml"
CONFIG = ROOT / "deployments" / "configs" / "demo.yaml"

IMAGE_ROOT = PurePosixPath("/opt/draftpool")  # this repository in the image
HTTP_PORT, GRPC_PORT = 8000, 9000
DRAFT_PORTS = (50051, 50058)
KEYS = PurePosixPath("/etc/draftpool/keys")  # where pods see the Secret draftpool-keys, which its user makes
TARGET_RESOURCE, DRAFTER_RESOURCE = "draftpool_target", "draftpool_drafter"

ModelReplicas = TypeVar("ModelReplicas", TargetConfig, PoolConfig)

_BLOCK = re.compile(r"^  serveConfigV2: \|\n(?:    .*\n|\n)*", re.MULTILINE)


def serve_config(config: AppConfig) -> dict[str, Any]:
    """The content of Serve's config file for this application on a cluster."""
    application = {"name": APP_NAME, "route_prefix": "/", "import_path": "deployments.app:build"}
    reflection = config.grpc is not None and config.grpc.reflection
    grpc = {"port": GRPC_PORT, "grpc_servicer_functions": list(SERVICERS), "enable_reflection": reflection}
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": HTTP_PORT},
        "grpc_options": grpc,
        "applications": [application | {"args": arguments(on_cluster(config))}],
    }


def arguments(config: AppConfig) -> dict[str, Any]:
    """The application's arguments, without defaults and without the proxies' addresses, which belong to Serve."""
    listening: dict[str, set[str] | bool] = {"http": {"host", "port"}, "grpc": True}
    return config.model_dump(mode="json", exclude=listening, exclude_defaults=True)


def on_cluster(config: AppConfig) -> AppConfig:
    targets = tuple(in_pods(target, TARGET_RESOURCE) for target in config.targets)
    pool = config.pool and in_pods(config.pool, DRAFTER_RESOURCE, host="node", ports=DRAFT_PORTS)
    ingress = config.ingress.model_copy(update={"host": "node"})
    access = AccessConfig(keys_file=str(KEYS / "api-keys"), admin_keys_file=str(KEYS / "admin-keys"))
    return config.model_copy(update={"targets": targets, "pool": pool, "ingress": ingress, "access": access})


def in_pods(replicas: ModelReplicas, resource: str, **changes: object) -> ModelReplicas:
    """The replicas with a path in the image, each in a pod that offers `resource`."""
    places = {"path": in_image(replicas.path), "resources": {**replicas.resources, resource: 1.0}}
    return replicas.model_copy(update=places | changes)


def in_image(path: str) -> str:
    """The path in the image of a folder of this repository; other paths and hub ids are returned unchanged."""
    given = Path(path)
    return str(IMAGE_ROOT / given.relative_to(ROOT).as_posix()) if given.is_relative_to(ROOT) else path


def rendered(manifest: str, config: AppConfig) -> str:
    """The manifest with its serveConfigV2 block replaced."""
    text = yaml.safe_dump(serve_config(config), sort_keys=False, width=110)
    block = "  serveConfigV2: |\n" + "".join(f"    {line}\n" for line in text.splitlines())
    result, count = _BLOCK.subn(lambda _: block, manifest)
    if count != 1:
        raise SystemExit(f"{MANIFEST.name} has {count} serveConfigV2 blocks; it needs exactly one")
    return result


def main() -> None:
    before = MANIFEST.read_text(encoding="utf-8")
    after = rendered(before, load_config(CONFIG))
    if sys.argv[1:] == ["--check"]:
        if before != after:
            raise SystemExit(f"{MANIFEST.name} is not current; run python -m k8s.render")
    elif before != after:
        MANIFEST.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
