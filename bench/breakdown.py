"""Question: where does the time of a plain step go, and how much of it is our own bookkeeping?

The step loop runs on this thread, after prefill. Products and attention are timed inside the kernels, sampling by
picking again from logits of the same shape. Everything else counts as bookkeeping: norms and rotations in the kernels,
all Python of scheduling and committing. Beside it stands a step of the whole engine, whose thread hands every run to
another one: what it takes longer is two threads that want the interpreter, and a core, at the same time.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoTokenizer

from bench import machine
from bench.arguments import RESULTS, add_target, add_threads, plain_parser
from bench.ours import requests
from bench.prompts import held_out
from cli.arguments import whole
from deployments.local import complete, open_engine
from model.native.decoder import NativeDecoder
from protocol.errors import ConfigError
from protocol.request import SamplingParams
from router.policy import Off
from targets.engine import EngineConfig
from targets.model import TargetModel, load_target
from targets.scheduler import Scheduler, SchedulerConfig
from targets.sequence import Sequence
from targets.step import Stepper

SHORT, LONG, PROMPT = 16, 144, 128
LENGTH = 2 * LONG


@dataclass(frozen=True, slots=True)
class Step:
    """Milliseconds of one step, medians over repetitions. share: of bookkeeping. engine_ms: with its thread."""

    batch: int
    temperature: float
    step_ms: float
    products_ms: float
    attention_ms: float
    sampling_ms: float
    bookkeeping_ms: float
    share: float
    engine_ms: float


def measure(model: TargetModel, prompts: list[tuple[int, ...]], temperature: float, repeat: int) -> Step:
    decoder = model.decoder
    if not isinstance(decoder, NativeDecoder):
        raise ConfigError("the breakdown reads the native kernels' clocks; they need a CPU and a C++ compiler")
    rows, engine = [], []
    for _ in range(repeat):
        rows.append(steps(model, decoder, prompts, temperature))
        long, short = (wall_ms(model, prompts, temperature, length) for length in (LONG, SHORT))
        engine.append((long - short) / (LONG - SHORT))
    step, products, attention = (median(column) for column in zip(*rows, strict=True))
    sampling = sampling_ms(decoder, len(prompts), temperature)
    rest = step - products - attention - sampling
    figures = [round(value, 4) for value in (step, products, attention, sampling, rest, rest / step, median(engine))]
    return Step(len(prompts), temperature, *figures)


def steps(
    model: TargetModel, decoder: NativeDecoder, prompts: list[tuple[int, ...]], temperature: float
) -> tuple[float, float, float]:
    """Milliseconds of a step, of its products and of its attention: medians over LONG - SHORT steps."""
    scheduler = Scheduler(model.ledger, SchedulerConfig(len(prompts)))
    stepper = Stepper(model, Off(), scheduler, None)
    sequences = [Sequence(i, one, LENGTH) for i, one in enumerate(requests(prompts, temperature, LENGTH))]
    for sequence in sequences:
        scheduler.add(sequence)
    while not all(sequence.num_generated > SHORT for sequence in sequences):
        stepper.step()
    rows = []
    for _ in range(LONG - SHORT):
        before, start = decoder.phase_ms(), time.perf_counter()
        stepper.step()
        wall, after = 1e3 * (time.perf_counter() - start), decoder.phase_ms()
        rows.append((wall, after.products - before.products, after.attention - before.attention))
    for sequence in sequences:
        stepper.remove(sequence)
    wall, products, attention = (median(column) for column in zip(*rows, strict=True))
    return wall, products, attention


def wall_ms(model: TargetModel, prompts: list[tuple[int, ...]], temperature: float, length: int) -> float:
    engine = open_engine(model, None, Off(), EngineConfig(max_batch=len(prompts)))
    start = time.perf_counter()
    try:
        complete(engine, requests(prompts, temperature, length))
    finally:
        engine.stop()
    return 1e3 * (time.perf_counter() - start)


def sampling_ms(decoder: NativeDecoder, batch: int, temperature: float, passes: int = 200) -> float:
    logits = torch.randn(batch, decoder.config.vocab_size, generator=torch.Generator().manual_seed(0))
    sampling = [SamplingParams(temperature, seed=seed) for seed in range(batch)]
    times = []
    for position in range(passes):
        start = time.perf_counter()
        decoder.pick(logits, sampling, [position] * batch)
        times.append(1e3 * (time.perf_counter() - start))
    return median(times)


def table(measured: list[Step], place: Any) -> str:
    """One line a step; times in ms."""
    rows = [asdict(step) for step in measured]
    lines = [f"| {' | '.join(rows[0])} |", "|" + "---|" * len(rows[0])]
    lines += [f"| {' | '.join(map(str, row.values()))} |" for row in rows]
    return "\n".join([*lines, "", machine.footer(place)]) + "\n"


def main() -> int:
    parser = plain_parser(__doc__)
    add_target(parser)
    parser.add_argument("--batch", type=whole(1), nargs="+", default=[1, 16])
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.0, 0.8])
    parser.add_argument("--repeat", type=whole(1), default=15)
    add_threads(parser)
    parser.add_argument("--out", type=Path, default=RESULTS / "breakdown.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    num_positions = max(args.batch) * 512
    model = load_target(args.target, dtype=torch.bfloat16, num_positions=num_positions, page_size=16)
    prompts = [
        prompt.token_ids for prompt in held_out(AutoTokenizer.from_pretrained(args.target), max(args.batch), PROMPT)
    ]
    measured = [
        measure(model, prompts[:batch], temperature, args.repeat)
        for batch in args.batch
        for temperature in args.temperature
    ]
    report = {"machine": machine.describe(), "target": args.target.name, "steps": [asdict(step) for step in measured]}
    machine.save(args.out, report, table(measured, report["machine"]))
    sys.stdout.write(table(measured, report["machine"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
