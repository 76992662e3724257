"""Where a result was measured: machine, versions, commit and command, to stand in every result file."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from model.execution import why_not_native
from model.native.library import features

ROOT = Path(__file__).resolve().parent.parent


def describe() -> dict[str, object]:
    return {
        "cpu": cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "kernels": why_not_native() or features(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "commit": commit(),
        "command": " ".join([_program(), *sys.argv[1:]]).replace(f"{ROOT}/", ""),
    }


def footer(place: Mapping[str, Any]) -> str:
    """The last line of a table: what `describe` told. Older results name no kernels."""
    command = re.sub(r" --out \S+", "", str(place["command"]))  # where it went is where it lies
    engines = "".join(f", {name} {version}" for name, version in place.get("engines", {}).items())
    kernels = f", kernels {place['kernels']}" if "kernels" in place else ""
    versions = f"{place['threads']} threads, torch {place['torch']}{engines}"
    return f"{place['cpu']}{kernels}, {versions}; commit {place['commit']}; `{command}`."


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]], *notes: str) -> str:
    """A table, and the notes below it, one a line."""
    lines = [f"| {' | '.join(map(str, line))} |" for line in [header, ["---"] * len(header), *rows]]
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"


def publish(out: Path, report: Mapping[str, Any], table: str) -> None:
    """Saves a result and prints its table."""
    save(out, report, table)
    sys.stdout.write(table)


def save(out: Path, report: Mapping[str, Any], table: str) -> None:
    """A result as JSON, and its table beside it. Each replaces an older one at once: no reader sees half of it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    for path, text in ((out, json.dumps(report, indent=1) + "\n"), (out.with_suffix(".md"), table)):
        part = path.with_name(f"{path.name}.part")
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)


def cpu_name() -> str:
    names = {line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")}
    count = sum(line.startswith("processor") for line in _cpuinfo())
    return f"{count} x {', '.join(sorted(names)) or platform.machine()}"


def commit() -> str:
    """The checked-out commit, with + when tracked files differ from it."""
    head = _git("rev-parse", "--short=12", "HEAD")
    return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _program() -> str:
    path = Path(sys.argv[0])
    if path.name == "draftpool":
        return path.name
    try:
        module = ".".join(path.resolve().relative_to(ROOT).with_suffix("").parts)
        return f"python -m {module.removesuffix('.__main__')}"
    except ValueError:
        return path.name
