"""Question: where does the time of a plain step go, and how much of it is our own bookkeeping?

The engine decodes after prefill. Products and attention are timed inside the kernels, sampling by picking again from
logits of the same shape. Everything else counts as bookkeeping: norms and rotations in the kernels, all Python of
scheduling and committing, and the wait for the interpreter while another thread takes the tokens.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from itertools import count, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoTokenizer

from bench import machine
from bench.arguments import RESULTS, add_target, add_threads, plain_parser
from bench.ours import requests
from bench.passes import median_ms
from bench.policies import RoundRecorder
from bench.workload import held_out
from cli.arguments import whole
from deployments.local import open_engine
from model.native.decoder import NativeDecoder
from protocol.errors import ConfigError
from protocol.record import RoundRecord
from protocol.request import SamplingParams
from router.policy import Off
from targets.complete import complete
from targets.engine import EngineConfig
from targets.model import TargetModel, load_target

WARM_STEPS, NUM_STEPS, PROMPT = 16, 144, 128


@dataclass(frozen=True, slots=True)
class StepParts:
    """Milliseconds of one step, medians over repetitions. share: of bookkeeping."""

    batch: int
    temperature: float
    step_ms: float
    products_ms: float
    attention_ms: float
    sampling_ms: float
    bookkeeping_ms: float
    share: float


class PhaseRecorder(RoundRecorder):
    """phases: of products and of attention at the end of each round, as the kernels' clocks stand."""

    def __init__(self, decoder: NativeDecoder) -> None:
        super().__init__(Off())
        self.phases: list[tuple[float, float]] = []
        self._decoder = decoder

    def observe(self, record: RoundRecord) -> None:
        super().observe(record)
        phase = self._decoder.phase_ms()
        self.phases.append((phase.products, phase.attention))


def measure(model: TargetModel, prompts: list[tuple[int, ...]], temperature: float, repeat: int) -> StepParts:
    decoder = model.decoder
    if not isinstance(decoder, NativeDecoder):
        raise ConfigError("the breakdown reads the native kernels' clocks; they need a CPU and a C++ compiler")
    rows = [steps(model, decoder, prompts, temperature) for _ in range(repeat)]
    step, products, attention = (median(column) for column in zip(*rows, strict=True))
    sampling = sampling_ms(decoder, len(prompts), temperature)
    rest = step - products - attention - sampling
    figures = [round(value, 4) for value in (step, products, attention, sampling, rest, rest / step)]
    return StepParts(len(prompts), temperature, *figures)


def steps(
    model: TargetModel, decoder: NativeDecoder, prompts: list[tuple[int, ...]], temperature: float
) -> tuple[float, float, float]:
    """Milliseconds of a step, of its products and of its attention: medians over the steps after the first ones."""
    recorder = PhaseRecorder(decoder)
    engine = open_engine(model, None, recorder, EngineConfig(max_batch=len(prompts)))
    try:
        complete(engine, requests(prompts, temperature, WARM_STEPS + NUM_STEPS))
    finally:
        engine.stop()
    rounds = zip(recorder.rounds[1:], pairwise(recorder.phases), strict=True)
    rows = [
        (one.draft_ms + one.verify_ms + one.rest_ms, after[0] - before[0], after[1] - before[1])
        for one, (before, after) in rounds
        if len(one.rows) == len(prompts) and not one.num_prefill_tokens
    ]
    wall, products, attention = (median(column) for column in zip(*rows[WARM_STEPS:], strict=True))
    return wall, products, attention


def sampling_ms(decoder: NativeDecoder, batch: int, temperature: float, passes: int = 200) -> float:
    logits = torch.randn(batch, decoder.config.vocab_size, generator=torch.Generator().manual_seed(0))
    sampling, position = [SamplingParams(temperature, seed=seed) for seed in range(batch)], count()
    return median_ms(lambda: decoder.pick(logits, sampling, [next(position)] * batch), passes)


def table(measured: list[StepParts], place: Any) -> str:
    """One line a step; times in ms."""
    rows = [asdict(step) for step in measured]
    return machine.markdown(list(rows[0]), [list(row.values()) for row in rows], machine.footer(place))


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
    prompts = held_out(AutoTokenizer.from_pretrained(args.target), max(args.batch), PROMPT)
    measured = [
        measure(model, prompts[:batch], temperature, args.repeat)
        for batch in args.batch
        for temperature in args.temperature
    ]
    report = {"machine": machine.describe(), "target": args.target.name, "steps": [asdict(step) for step in measured]}
    machine.publish(args.out, report, table(measured, report["machine"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
