"""Whether stream heads raise tokens per second: the same drafts with none, one, two of them, and with as many as pay.

Serial speculation at fixed depths and lengths, target and drafter in turn on the same cores, modes next to each other
in time. Beside it what decides: how often a guess is the exit's own next pick, along the target's own text, and what a
drafted token takes. Texts are compared with the plain loop's.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer

from bench import machine
from bench.arguments import ended
from bench.cells import Cell, Outcome, Subject, TokenIds
from bench.command import HELD_OUT, listed
from bench.metrics import CellResult
from bench.ours import DraftPoolEngine
from bench.run import Engines, measure
from bench.slowed import Device
from bench.stats import best, paired_ratio
from bench.workload import EQUAL, LONGEST, Workload, read_texts
from cli.arguments import depth, whole
from drafters.manifest import Manifest
from drafters.streams import Pace, StreamUse, load_streams
from model.batch import BatchRow, build_batch
from model.decoder import Decoder
from model.kv import PagedKV
from model.load import load_decoder
from model.native.library import default_threads
from model.pages import PageLedger
from model.rollout import Drafted, Rollout
from model.streams import StreamHead, next_state
from protocol.errors import ConfigError
from protocol.request import SamplingParams

MODELS = machine.ROOT / "demo/models"
TRAINED = machine.ROOT / "demo/.work/streams/drafter"
RESULT = machine.ROOT / "bench/results/streams.json"
AUTO = "auto"
CHUNK = 64  # positions whose logits are held at a time
DRAFT, TIMES = 8, 25  # tokens, and how often each draft is timed


class SlowedDecoder:
    """A drafter's decoder whose passes take their time, as where each is a launch on a device that is far away."""

    def __init__(self, decoder: Decoder, device: Device, pass_ms: float) -> None:
        self._decoder = decoder
        self._device = device
        self._pass_ms = pass_ms

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)

    def roll_out(self, *args: Any) -> list[Drafted]:
        began, before = self._device.clock(), self._decoder.num_passes
        drafted = self._decoder.roll_out(*args)
        self._device.finish(began, self._pass_ms * (self._decoder.num_passes - before))
        return drafted


@dataclass(slots=True, kw_only=True)
class SlowedUse(StreamUse):
    device: Device
    pass_ms: float

    def roll_out(
        self, decoder: Decoder, rows: Sequence[Rollout], kv: PagedKV, depth: int, boundary: Tensor | None
    ) -> list[Drafted]:
        slowed: Any = SlowedDecoder(decoder, self.device, self.pass_ms)
        return StreamUse.roll_out(self, slowed, rows, kv, depth, boundary)


class StreamsEngine(DraftPoolEngine):
    """Ours, with the number of streams for a mode. pass_ms: of the drafter on a slowed device; 0: as fast as it is."""

    def __init__(self, subject: Subject, pass_ms: float) -> None:
        super().__init__(subject)
        self.device = Device(f"{pass_ms:g} ms a pass of the drafter")
        self._pass_ms = pass_ms

    def open(self) -> None:
        super().open()
        assert self._drafter is not None, "a case of drafting needs a drafter"
        most = self._drafter.streams.most
        if not most:
            raise ConfigError(f"{self._subject.drafter} has no streams; `draftpool train-drafter` adds them")
        self.uses = {str(count): self._use(count) for count in range(most + 1)}
        self.uses[AUTO] = self._use(most, Pace(most))

    def _use(self, most: int, pace: Pace | None = None) -> StreamUse:
        if not self._pass_ms:
            return StreamUse(most, pace)
        return SlowedUse(most, pace, device=self.device, pass_ms=self._pass_ms)

    def run(self, cell: Cell, prompts: Sequence[TokenIds], max_tokens: int) -> Outcome:
        assert self._drafter is not None, "a case of drafting needs a drafter"
        self._drafter.streams = self.uses[cell.mode]
        return super().run(cell, prompts, max_tokens)


def right_guesses(
    decoder: Decoder, heads: Sequence[StreamHead], exit_: int, text: TokenIds, start: int, sampling: SamplingParams
) -> list[list[bool]]:
    """By stream, whether its guess is the exit's own pick, at the positions of `text` from `start` on, each guessed
    with the true tokens before it.
    """
    ledger = PageLedger(1, len(text))
    ledger.open(0)
    assert ledger.reserve(0, len(text))
    batch = build_batch([BatchRow(ledger.slots(0), len(text))], decoder.device)
    states = decoder.run(decoder.embed(text), batch, decoder.new_kv(len(text)), 0, exit_).clone()
    own = _picks(decoder, states, sampling, 1)
    found = []
    for stream, head in enumerate(heads, 1):
        states = next_state(head, states[:-1], decoder.embed(text[stream:]).clone())
        guesses = _picks(decoder, states, sampling, 1 + stream)
        found.append([own[at + stream] == guess for at, guess in enumerate(guesses) if at + stream >= start])
    return found


def _picks(decoder: Decoder, states: Tensor, sampling: SamplingParams, first: int) -> list[int]:
    """first: the position that the pick from the first state takes."""
    picks: list[int] = []
    for begin, end in pairwise([*range(0, len(states), CHUNK), len(states)]):
        positions = range(first + begin, first + end)
        picks += decoder.pick(decoder.logits(states, range(begin, end)), [sampling] * (end - begin), positions)
    return picks


def least(
    decoder: Decoder, exit_: int, texts: Sequence[TokenIds], temperature: float, num_streams: int
) -> tuple[float, float]:
    """Of drafts of DRAFT tokens behind each text: ms a token, each the least of TIMES; and passes a draft."""
    longest = max(map(len, texts)) + DRAFT
    kv, slots = decoder.new_kv(longest), np.arange(longest)
    seconds, before = 0.0, decoder.num_passes
    for seed, text in enumerate(texts):
        sampling = SamplingParams(temperature, seed=seed)
        decoder.roll_out([Rollout(slots, 0, text, 1, sampling)], kv, exit_, None)
        row, times = Rollout(slots, len(text) - 1, text[-1:], DRAFT, sampling), []
        for _ in range(TIMES):
            began = time.perf_counter()
            decoder.roll_out([row], kv, exit_, None, num_streams)
            times.append(time.perf_counter() - began)
        seconds += min(times)
    passes = decoder.num_passes - before - len(texts)
    return 1e3 * seconds / len(texts) / DRAFT, passes / len(texts) / TIMES


def guessed(engine: StreamsEngine, args: argparse.Namespace, workload: Workload) -> Iterator[dict[str, Any]]:
    """How often guesses are right and what that saves, by exit and temperature."""
    manifest = Manifest.load(args.drafter)
    decoder = load_decoder(args.drafter, dtype=torch.bfloat16, num_layers=manifest.exits[-1])
    heads = load_streams(args.drafter, manifest.exits, manifest.streams, decoder.config.hidden_size)
    prompts = workload.prompts("", args.texts)
    for exit_ in manifest.exits:
        decoder.add_streams(exit_, heads[exit_])
    for temperature in args.temperatures:
        made = [engine.oracle(prompt, temperature, seed, args.max_tokens) for seed, prompt in enumerate(prompts)]
        texts = [(*prompt, *own) for prompt, own in zip(prompts, made, strict=True)]
        begun = [text[: len(text) - args.max_tokens // 2] for text in texts]
        for exit_ in manifest.exits:
            shares: list[list[bool]] = [[] for _ in range(manifest.streams)]
            for seed, text in enumerate(texts):
                right = right_guesses(decoder, heads[exit_], exit_, text, EQUAL, SamplingParams(temperature, seed=seed))
                for all_of, own in zip(shares, right, strict=True):
                    all_of += own
            found = [least(decoder, exit_, begun, temperature, count) for count in range(manifest.streams + 1)]
            yield {
                "exit": exit_,
                "temperature": temperature,
                "right": [round(sum(own) / len(own), 3) for own in shares],
                "guesses": len(shares[0]),
                "least_ms_per_token": [round(ms, 4) for ms, _ in found],
                "passes": [round(passes, 2) for _, passes in found],
            }


def compared(results: Sequence[CellResult]) -> list[dict[str, Any]]:
    """Every mode beside the one without streams, setting by setting."""
    plain = {_setting(one): one for one in results if one.mode == "0"}
    return [
        {
            "temperature": one.temperature,
            "batch": one.batch,
            "depth": one.depth,
            "length": one.length,
            "streams": one.mode,
            "tokens_per_second": round(median(one.tokens_per_second), 1),
            "draft_ms_per_token": round(median(one.draft_ms_per_token), 4),
            "accepted": one.acceptance_rate,
            "over_none": asdict(paired_ratio(one.tokens_per_second, plain[_setting(one)].tokens_per_second)),
            "identical": one.identical,
        }
        for one in results
    ]


def _setting(one: CellResult) -> tuple[object, ...]:
    return one.temperature, one.batch, one.depth, one.length


def best_of_each(results: Sequence[CellResult]) -> list[dict[str, Any]]:
    """Each number of streams at its own best depth and length."""
    found = []
    for temperature, batch in sorted({(one.temperature, one.batch) for one in results}):
        here = [one for one in results if (one.temperature, one.batch) == (temperature, batch)]
        bests = {}
        for mode in dict.fromkeys(one.mode for one in here):
            rates = {(one.depth, one.length): one.tokens_per_second for one in here if one.mode == mode}
            setting = best(rates)
            bests[mode] = {
                "setting": f"{setting[0]}/{setting[1]}",
                "tokens_per_second": round(median(rates[setting]), 1),
            }
        found.append({"temperature": temperature, "batch": batch, "best": bests})
    return found


def table(made: dict[str, Any]) -> str:
    lines = [
        f"{made['target']}, {made['drafter']}; drafts in turn with the target. Ratios are over no streams in the same",
        "setting, median and 90 % interval of neighbours in time.",
        "",
        f"How often guess 1, 2, ... is right; drafts of {DRAFT} tokens with 0, 1, ... streams at their quickest:",
        "",
        "| temperature | exit | guesses right | ms a token | passes a draft |",
        "|---|---|---|---|---|",
    ]
    for row in made["guesses"]:
        right = ", ".join(f"{own:.1%}" for own in row["right"])
        took, passes = (", ".join(map(str, row[name])) for name in ("least_ms_per_token", "passes"))
        lines.append(f"| {row['temperature']} | {row['exit']} | {right} | {took} | {passes} |")
    lines += [
        "",
        "| temperature | batch | depth/length | streams | ms a draft token | tokens/s | over none |",
        "|" + "---|" * 7,
    ]
    for row in made["cells"]:
        ratio = row["over_none"]
        lines.append(
            f"| {row['temperature']} | {row['batch']} | {row['depth']}/{row['length']} | {row['streams']} | "
            f"{row['draft_ms_per_token']} | {row['tokens_per_second']} | "
            f"{ratio['median']:.3f} ({ratio['low']:.3f}-{ratio['high']:.3f}) |"
        )
    lines += ["", "Each number of streams at its own best depth and length:", ""]
    for row in made["best"]:
        told = ", ".join(f"{mode}: {one['tokens_per_second']} at {one['setting']}" for mode, one in row["best"].items())
        lines.append(f"- temperature {row['temperature']}, batch {row['batch']}: {told} tokens/s")
    lines += ["", f"Identical to the plain loop (temperature 0): {made['identical']:.0%} of outputs."]
    return "\n".join([*lines, "", machine.footer(made["machine"])]) + "\n"


def run(args: argparse.Namespace) -> int:
    largest = max(args.batches)
    subject = Subject(args.target, args.drafter, torch.bfloat16, args.threads, largest, LONGEST + args.max_tokens)
    workload = Workload(read_texts(args.prompts, AutoTokenizer.from_pretrained(args.target)), "equal", args.texts)
    engine = StreamsEngine(subject, args.pass_ms)
    engine.open()
    try:
        cells = [
            Cell(mode, batch, exit_, length, temperature)
            for temperature in args.temperatures
            for batch in args.batches
            for exit_ in args.depths
            for length in args.lengths
            for mode in engine.uses
        ]
        engines = Engines(engine, dict.fromkeys(engine.uses, engine))
        results = measure(engines, cells, workload, repeat=args.repeat, max_tokens=args.max_tokens)
        guesses = list(guessed(engine, args, workload))
        pace = engine.uses[AUTO].pace
        made = {
            "machine": machine.describe(),
            "target": args.target.name,
            "drafter": args.drafter.name + (f" on a {engine.device.label}" if args.pass_ms else ""),
            "late": engine.device.num_late / max(engine.device.num_steps, 1),
            "settings": {name: getattr(args, name) for name in ("repeat", "texts", "max_tokens")},
            "guesses": guesses,
            "cells": compared(results),
            "best": best_of_each(results),
            "auto_ms_per_token": pace.told() if pace else {},
            "identical": min(one.identical for one in results if one.identical is not None),
        }
    finally:
        engine.close()
    machine.save(args.out, made, table(made))
    sys.stdout.write(table(made))
    return 0 if made["identical"] == 1.0 else 1


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, default=MODELS / "large")
    parser.add_argument(
        "--drafter", type=Path, default=TRAINED, help="with streams (default: what demo/streams.yaml makes)"
    )
    parser.add_argument("--batches", type=listed(whole(1)), default=[1])
    parser.add_argument("--depths", type=listed(depth), default=[2, 4, 6])
    parser.add_argument("--lengths", type=listed(whole(1, 64)), default=[4, 8])
    parser.add_argument("--temperatures", type=listed(float), default=[0.0, 1.0])
    parser.add_argument("--texts", type=whole(1), default=8, help="prompts of a cell (default: %(default)s)")
    parser.add_argument("--repeat", type=whole(1), default=7, help="interleaved repetitions (default: %(default)s)")
    parser.add_argument("--max-tokens", type=whole(2), default=96)
    parser.add_argument("--pass-ms", type=float, default=0.0, help="of a slowed drafter (default: not slowed)")
    parser.add_argument("--threads", type=whole(1), default=default_threads())
    parser.add_argument("--prompts", type=Path, default=HELD_OUT)
    parser.add_argument("--out", type=Path, default=RESULT)
    return parser.parse_args(arguments)


def main() -> int:
    return ended("bench.streams", run, parse())


if __name__ == "__main__":
    sys.exit(main())
