"""Where curves are kept, and under which key: a change of machine, model, threads or version finds none."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

from deployments.config import Placement, Weights
from deployments.process import device_of
from drafters.manifest import drafter_exits
from model.load import resolve
from model.native.compiler import CompilerError, cache_directory, library_path
from protocol.errors import ConfigError
from router.cost_files import cache_name, dumps, loads
from router.costs import CostCurves, ModelKey


def model_key(weights: Weights, placement: Placement) -> ModelKey:
    device = device_of(placement)
    versions = f"draftpool {version('draftpool')}, torch {torch.__version__}, {kernels(device)}"
    return ModelKey(device_name(device), fingerprint(resolve(weights.path)), weights.dtype, placement.threads, versions)


def kernels(device: torch.device) -> str:
    """Our own, by their build, or torch's."""
    if device.type != "cpu":
        return "eager"
    try:
        return f"native {library_path().stem[:12]}"
    except CompilerError:
        return "eager"


def fingerprint(directory: Path) -> str:
    """Of config.json and exits. Passes over other weights of the same shape cost the same."""
    shape = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    text = json.dumps([shape, drafter_exits(directory)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.machine()
    return f"{os.cpu_count()} x {name}, {torch.backends.cpu.get_cpu_capability()}"


def cache_folder() -> Path:
    """$DRAFTPOOL_CACHE/profiles, or in the user's cache."""
    return cache_directory() / "profiles"


def keep(curves: CostCurves) -> Path:
    """Into the cache, whole or not at all. Where it lies. Raises ConfigError when it cannot be written."""
    path = cache_folder() / cache_name(curves.target.key, curves.drafter.key if curves.drafter else None)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make {path.parent}: {error.strerror}; set DRAFTPOOL_CACHE") from None
    write(path, [curves])
    return path


def find(target: ModelKey, drafter: ModelKey | None) -> CostCurves | None:
    """What is kept for these two; None: not profiled yet. Raises ConfigError for a file that is not understood."""
    path = cache_folder() / cache_name(target, drafter)
    if not path.exists():
        return None
    (curves,) = loads(path.read_text(encoding="utf-8"), str(path))
    return curves


def write(path: Path, curves: list[CostCurves]) -> None:
    """Raises ConfigError when it cannot be written."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(dumps(curves), encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; name a folder that exists and is yours") from None
