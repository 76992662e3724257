"""What a pass costs by its width, beside one read of the same weights by the same threads: one after the other, again
and again. Sampling included, at temperature 0, behind 256 tokens of context.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench import machine
from bench.arguments import add_threads
from bench.command import listed
from bench.costs import CONTEXT, step_ms
from bench.floor import read_ms, weight_bytes
from bench.stats import Ratio, paired_ratio
from cli.arguments import whole
from targets.model import TargetModel, load_target

READ = "read"
PASSES = 3  # of every width in each repetition, whose median counts
HALF_BILLION: dict[str, Any] = {  # 513 million parameters
    "vocab_size": 32000,
    "hidden_size": 1280,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 20,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


@contextmanager
def checkpoint(target: Path | None) -> Iterator[Path]:
    """The target, or for as long as it is needed a random Llama of half a billion parameters in bf16."""
    if target is not None:
        yield target
        return
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        torch.set_default_dtype(torch.bfloat16)
        try:
            LlamaForCausalLM(LlamaConfig(**HALF_BILLION)).save_pretrained(folder)
        finally:
            torch.set_default_dtype(torch.float32)
        yield Path(folder)


def measure(model: TargetModel, widths: Sequence[int], pairs: int) -> dict[str, list[float]]:
    """Milliseconds of a pass of each width, and of one read of the weights, in every repetition."""
    num_bytes = weight_bytes(model.decoder.config, torch.bfloat16)
    times: dict[str, list[float]] = {READ: [], **{str(width): [] for width in widths}}
    for _ in range(pairs):
        times[READ].append(read_ms(num_bytes, PASSES))
        for width, taken in step_ms(model, widths, 0.0, PASSES).items():
            times[str(width)].append(taken)
    return times


def ratios(times: Mapping[str, Sequence[float]]) -> dict[str, Ratio]:
    """A pass over one token by the read, and wider passes by that over one."""
    wider = [name for name in times if name not in (READ, "1")]
    return {"1 over the read": paired_ratio(times["1"], times[READ])} | {
        f"{width} over 1": paired_ratio(times[width], times["1"]) for width in wider
    }


def table(times: Mapping[str, Sequence[float]], found: Mapping[str, Ratio], place: Mapping[str, Any]) -> str:
    lines = ["| tokens in the pass | ms | ratio | 90 % interval |", "|---|---|---|---|"]
    shown = {name.split()[0]: (name, ratio) for name, ratio in found.items()}
    for name, taken in times.items():
        told, ratio = shown.get(name, ("", None))
        cells = (f"{ratio.median:.2f} ({told})", f"{ratio.low:.2f}-{ratio.high:.2f}") if ratio else ("", "")
        label = "one read of the weights" if name == READ else name
        lines.append(f"| {label} | {median(taken):.2f} | {cells[0]} | {cells[1]} |")
    return "\n".join([*lines, "", machine.footer(place)]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path, help="default: a random Llama of half a billion parameters")
    parser.add_argument("--widths", type=listed(whole(1)), default=[1, 2, 3, 5, 9])
    parser.add_argument("--pairs", type=whole(2), default=15, help="default: %(default)s")
    parser.add_argument("--out", type=Path, required=True)
    add_threads(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with checkpoint(args.target) as path:
        num_positions = CONTEXT + max(args.widths) + 16
        model = load_target(path, dtype=torch.bfloat16, num_positions=num_positions, page_size=16)
        times = measure(model, [1, *(width for width in args.widths if width != 1)], args.pairs)
    place, found = machine.describe(), ratios(times)
    text = table(times, found, place)
    report = {"machine": place, "ms": times, "ratios": {name: ratio.median for name, ratio in found.items()}}
    machine.save(args.out, report, text)
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
