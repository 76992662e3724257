"""Perplexities of a text, window by window, against transformers' loss."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import fmean

import pytest
import torch
from transformers import AutoModelForCausalLM

from bench.perplexity import arguments, our_losses, perplexities, run, windows_of
from model.load import WeightFormat
from protocol.errors import ConfigError
from tests.api.api_twins import tiny_tokenizer
from tests.deployments.checkpoints import make_family

TEXT = "def add(a, b):\n    return a + b\n" * 20


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(tmp_path_factory.mktemp("family")) / "large"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


def test_windows_are_whole_and_follow_each_other(text: Path) -> None:
    tokenizer = tiny_tokenizer()
    begin, tokens = tokenizer.encode(""), tokenizer.encode(TEXT, add_special_tokens=False)
    windows = windows_of(text, tokenizer, 20, 3)
    assert {len(window) for window in windows} == {20}
    assert all(window[: len(begin)] == begin for window in windows)
    joined = [token for window in windows for token in window[len(begin) :]]
    assert joined == tokens[: len(joined)]
    with pytest.raises(ConfigError, match="no window of 100000"):
        windows_of(text, tokenizer, 100000, 3)


def test_losses_in_fp32_are_those_of_transformers(target: Path, text: Path) -> None:
    windows = windows_of(text, tiny_tokenizer(), 24, 4)
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    with torch.no_grad():
        expected = [model(torch.tensor([window]), labels=torch.tensor([window])).loss.item() for window in windows]
    assert our_losses(target, WeightFormat.DENSE, torch.float32, windows) == pytest.approx(expected, rel=1e-4)


def test_the_command_writes_every_setting_beside_the_reference_and_names_what_is_left_out(
    target: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "perplexity.json"
    argv = ["--target", str(target), "--text", str(text), "--window", "16", "--windows", "3", "--threads", "1"]
    assert run(arguments().parse_args([*argv, "--peer", "llamacpp", "--out", str(out)])) == 0
    report = json.loads(out.read_text())
    assert list(report["losses"]) == ["dense fp32", "dense bf16", "stored bf16", "int8 bf16"]
    assert report["losses"]["dense bf16"] == report["losses"]["stored bf16"]  # the checkpoint is dense
    assert report["perplexity"] == {
        name: pytest.approx(math.exp(fmean(losses)), abs=1e-4) for name, losses in report["losses"].items()
    }
    assert report["perplexity"] == perplexities(report["losses"])
    table = out.with_suffix(".md").read_text()
    assert "| dense fp32 | " in table
    assert "| 1.0000 | 1.0000-1.0000 |" in table
    assert "Left out: llamacpp (it reads GGUF files only" in table
