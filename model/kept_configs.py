"""Keeps in the cache folder what config.json files come to, each under a hash of all that it depends on.

A process that finds one there starts without the parts of torch and transformers that reading it takes: two seconds of
a core. Where nothing can be kept or what is kept cannot be read, it is read anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from model.config import DecoderConfig, Rope
from model.native.compiler import cache_directory

SOURCES = tuple(Path(__file__).with_name(name) for name in ("config.py", "hf_config.py", "kept_configs.py"))


def place_of(raw: Mapping[str, Any]) -> Path:
    """raw: what config.json says. Frequencies of a rope are torch's, to the last bit of its vector instructions."""
    vectors = torch.backends.cpu.get_cpu_capability()
    parts = [json.dumps(raw, sort_keys=True), version("transformers"), torch.__version__, vectors]
    parts += [source.read_text(encoding="utf-8") for source in SOURCES]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return cache_directory() / "configs" / f"{digest[:32]}.json"


def find(place: Path) -> DecoderConfig | None:
    try:
        return _config(json.loads(place.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def keep(place: Path, config: DecoderConfig) -> None:
    """Atomically; nothing where it cannot be written, or is no JSON."""
    part = place.with_name(f"{place.name}.{os.getpid()}.part")
    with suppress(OSError, TypeError, ValueError):
        place.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(asdict(config)), encoding="utf-8")
        part.replace(place)


def _config(values: dict[str, Any]) -> DecoderConfig:
    """Equal ropes of layers are one value, as they were."""
    known: dict[Rope, Rope] = {}
    ropes = [Rope(tuple(told["inverse_frequencies"]), told["scaling"]) for told in values["ropes"]]
    tuples = {name: tuple(values[name]) for name in ("eos_token_ids", "windows", "head_token_ids")}
    return DecoderConfig(**values | tuples | {"ropes": tuple(known.setdefault(rope, rope) for rope in ropes)})
