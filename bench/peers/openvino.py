"""OpenVINO GenAI behind the seam, plain and with its own draft-model speculation.

It needs an environment of its own, which `make bench-peers` builds; models are exported once by its `optimum-cli`
into a cache folder beside the repository's other caches. Both dtypes start from the same fp32 export: the hint
decides what the plugin computes and stores in.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.cells import Cell, Subject, Unavailable
from bench.machine import ROOT
from bench.peers.imported import imported
from bench.peers.worker_engine import WorkerEngine

ENVIRONMENT = ROOT / ".venv-openvino"
EXPORTS = ROOT / "bench/.cache/openvino"
KV_GB = 1


class OpenVinoEngine(WorkerEngine):
    """Its worker holds a pipeline for plain decoding and one with the drafter."""

    name = "openvino"
    worker = "bench.peers.openvino_worker"

    def __init__(self, subject: Subject, modes: Sequence[str], environment: Path = ENVIRONMENT) -> None:
        super().__init__(subject, environment)
        self._modes = modes

    def open(self) -> None:
        super().open()
        if self._subject.threads < 2:
            raise Unavailable("its continuous-batching pipeline fails with one thread; give --threads 2 or more")
        own, dtype, drafting = self._subject, self._subject.dtype, "openvino-draft" in self._modes
        target = export(self._environment, imported(own.target, dtype))
        drafter = export(self._environment, imported(own.drafter, dtype)) if drafting and own.drafter else None
        for mode in self._modes:
            draft = str(drafter) if mode == "openvino-draft" else None
            if mode == "openvino-draft" and drafter is None:
                raise Unavailable("openvino-draft needs --drafter")
            answer = self._ask({"op": "open", "name": mode, "target": str(target), "drafter": draft} | self._options())
            self.version = answer["version"]

    def _setting(self, cell: Cell) -> dict[str, Any]:
        return {"name": cell.mode, "length": cell.length}

    def _options(self) -> dict[str, Any]:
        precision = {torch.bfloat16: "bf16", torch.float32: "f32"}[self._subject.dtype]
        properties = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": self._subject.threads}
        if precision == "f32":
            properties["KV_CACHE_PRECISION"] = "f32"
        return {"properties": properties, "cache_gb": KV_GB, "batch": self._subject.max_batch}


def export(environment: Path, model: Path) -> Path:
    """The folder of the exported model, made when its weights or config have changed. Raises Unavailable."""
    digest = hashlib.sha256()
    for file in (model / "config.json", *sorted(model.glob("*.safetensors"))):
        digest.update(file.read_bytes())
    folder = EXPORTS / f"{model.name}-{digest.hexdigest()[:16]}"
    if (folder / "openvino_model.xml").exists():
        return folder
    command: list[str | Path] = [environment / "bin/optimum-cli", "export", "openvino", "--model", model.resolve()]
    command += ["--task", "text-generation-with-past", "--weight-format", "fp32", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"optimum-cli cannot export {model.name}: {done.stderr.strip().splitlines()[-1]}")
    return folder
