from __future__ import annotations

import torch

from model.sweep import MIB, sweeper


def test_a_sweep_reads_as_much_as_it_is_told_and_next_to_nothing_elsewhere() -> None:
    assert sweeper(MIB, torch.device("cpu"))() == MIB // 8
    assert sweeper(MIB, torch.device("meta"))() == 1
