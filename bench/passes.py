"""Question: what does a pass cost by its width, beside one read of the same weights by the same threads?

Widths and the read are measured one after the other, again and again; sampling included, at temperature 0, behind 256
tokens of context. The read is the fastest of our kernel's and a few torch reductions over a buffer of the same size.
How long loading took, and how much memory, stands below.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench import machine
from bench.arguments import add_threads, add_weights, checkpoint, plain_parser
from bench.memory import MIB, peak_mb
from bench.stats import Ratio, paired_ratio
from cli.arguments import several, whole
from deployments.progress import loading
from model.checkpoint import tensor_source
from model.config import read_config
from model.execution import why_not_native
from model.load import WeightFormat, tensor_shapes
from model.native.library import library, num_threads, thread_pool
from model.native.memory import zeros
from protocol.request import SamplingParams
from targets.model import ForwardRow, TargetModel, load_target

READ, CONTEXT, SEQUENCE = "read", 256, -1
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
def given_or_random(target: Path | None) -> Iterator[Path]:
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


def step_ms(model: TargetModel, widths: Sequence[int], temperature: float, passes: int) -> dict[int, float]:
    """Of one sequence's pass over so many new tokens behind CONTEXT others. Widths run in turn, as in real rounds."""
    times: dict[int, list[float]] = {width: [] for width in widths}
    model.ledger.open(SEQUENCE)
    try:
        if not model.ledger.reserve(SEQUENCE, CONTEXT + max(widths)):
            raise RuntimeError(f"{model.ledger.num_free} free pages do not hold {CONTEXT + max(widths)} positions")
        for _ in range(passes + 2):
            for width in widths:
                times[width].append(_timed(partial(_pass, model, width, SamplingParams(temperature))))
    finally:
        model.ledger.free(SEQUENCE)
    return {width: median(taken[2:]) for width, taken in times.items()}


def _pass(model: TargetModel, width: int, sampling: SamplingParams) -> None:
    row = ForwardRow(SEQUENCE, CONTEXT, [1] * width, num_logits=width)
    model.pick([row], [sampling] * width, range(CONTEXT + 1, CONTEXT + 1 + width))


def matrix_bytes(directory: Path, dtype: torch.dtype, weights: WeightFormat) -> dict[str, int]:
    """Of every matrix as it is kept, without the kernels' padding."""
    source, shapes = tensor_source(directory), tensor_shapes(read_config(directory))
    sizes = {}
    for name, (rows, columns) in ((name, shape) for name, shape in shapes.items() if len(shape) == 2):
        blocks = source.blocks(name) if weights is WeightFormat.STORED else None
        dense = rows * (columns + 4) if weights is WeightFormat.INT8 else rows * columns * dtype.itemsize
        sizes[name] = dense if blocks is None else blocks.data.nbytes
    return sizes


def step_bytes(directory: Path, dtype: torch.dtype, weights: WeightFormat) -> int:
    """Of the matrices that one step reads: all layers' and the head's."""
    untied = set() if read_config(directory).tied_embeddings else {"model.embed_tokens.weight"}
    sizes = matrix_bytes(directory, dtype, weights)
    return sum(size for name, size in sizes.items() if name not in untied)


def read_ms(num_bytes: int, passes: int) -> float:
    """Of one read of so many bytes with torch's threads."""
    values = zeros((num_bytes // 64 * 8,), torch.float64).fill_(1.0)
    readers: list[Callable[[], object]] = [values.sum, values.view(torch.int64).max, values.view(torch.float32).amax]
    if why_not_native() is None:
        pool = thread_pool(num_threads())
        readers.append(lambda: library().dp_read(pool, values.data_ptr(), values.nbytes))
    return min(median_ms(reader, passes) for reader in readers)


def median_ms(call: Callable[[], object], passes: int) -> float:
    """The median time of a call, after two calls that only warm up."""
    return median([_timed(call) for _ in range(passes + 2)][2:])


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def load(directory: Path, weights: WeightFormat, num_positions: int) -> tuple[TargetModel, dict[str, float]]:
    """Of the process: its peak until then, and with loading."""
    why_not_native()  # compiles the kernels
    before, start = peak_mb("self"), time.perf_counter()
    with loading(directory) as progress:
        options: dict[str, Any] = {"dtype": torch.bfloat16, "weights": weights, "progress": progress}
        model = load_target(directory, num_positions=num_positions, page_size=16, **options)
    seconds, kept = time.perf_counter() - start, sum(matrix_bytes(directory, torch.bfloat16, weights).values())
    found = {"seconds": seconds, "before_mb": before, "peak_mb": peak_mb("self"), "matrices_mb": kept / MIB}
    return model, {name: round(value, 2) for name, value in found.items()}


def measure(model: TargetModel, num_bytes: int, widths: Sequence[int], pairs: int) -> dict[str, list[float]]:
    """Milliseconds of a pass of each width, and of one read of so many bytes of weights, in every repetition."""
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


def table(times: Mapping[str, Sequence[float]], compared: Mapping[str, Ratio], *notes: str) -> str:
    by_width = {name.split()[0]: (name, ratio) for name, ratio in compared.items()}
    rows = []
    for width, taken in times.items():
        name, ratio = by_width.get(width, ("", None))
        cells = (f"{ratio.median:.2f} ({name})", ratio.interval()) if ratio else ("", "")
        rows.append(("one read of the weights" if width == READ else width, f"{median(taken):.2f}", *cells))
    header = ("tokens in the pass", "ms", "ratio", "90 % interval")
    return machine.markdown(header, rows, *notes)


def loaded_note(found: Mapping[str, float]) -> str:
    over = (found["peak_mb"] - found["before_mb"]) / found["matrices_mb"]
    return (
        f"Loaded in {found['seconds']:.1f} s; matrices {found['matrices_mb']:.0f} MiB; peak of the process "
        f"{found['peak_mb']:.0f} MiB, {found['before_mb']:.0f} before loading: {over:.2f} of the matrices."
    )


def main() -> int:
    parser = plain_parser(__doc__)
    parser.add_argument("--target", type=checkpoint, help="default: a random Llama of half a billion parameters")
    parser.add_argument("--widths", type=several(whole(1)), default=[1, 2, 3, 5, 9])
    parser.add_argument("--pairs", type=whole(2), default=15, help="default: %(default)s")
    add_threads(parser)
    add_weights(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with given_or_random(args.target) as path:
        weights = WeightFormat(args.weights)
        model, found = load(path, weights, CONTEXT + max(args.widths) + 16)
        num_bytes = step_bytes(path, torch.bfloat16, weights)
        times = measure(model, num_bytes, [1, *(width for width in args.widths if width != 1)], args.pairs)
    place, compared = machine.describe(), ratios(times)
    report = {"machine": place, "loading": found, "read_bytes": num_bytes, "ms": times}
    report |= {"ratios": {name: ratio.median for name, ratio in compared.items()}}
    machine.publish(args.out, report, table(times, compared, loaded_note(found), machine.footer(place)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
