"""What loading takes, measured in a process of its own: little more than the weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.model.families import EXECUTIONS
from tests.sizes import quick

MEASURE = """
import sys
from pathlib import Path
import torch
from model.config import read_config
from model.execution import Execution
from model.load import load_decoder

def kib(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key))

def load(directory):
    return load_decoder(Path(directory), dtype=torch.bfloat16, execution=Execution(sys.argv[3]))

load(sys.argv[1])  # what a process takes once: imports, kernels
before = kib("VmRSS")
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")
decoder = load(sys.argv[2])
print(kib("VmHWM") - before)
"""


def make(directory: Path, vocab_size: int, hidden: int, num_layers: int, tied: bool) -> int:
    """The KiB of its weights."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=num_layers,
        num_attention_heads=8,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        dtype="bfloat16",
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(directory, max_shard_size="50MB")
    return sum(each.numel() for each in model.parameters()) * 2 // 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read from Linux")
@pytest.mark.parametrize("tied", quick([False, True], 1))
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_loading_takes_little_more_than_the_weights(tmp_path: Path, execution: str, tied: bool) -> None:
    """A layer of 24 is a twentieth; twice the weights, as long as both forms were held, would be 2."""
    make(tmp_path / "tiny", 64, 64, 1, tied)
    weights = make(tmp_path / "model", 8000, 640, 24, tied)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "tiny"), str(tmp_path / "model"), execution]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1.2 * weights
