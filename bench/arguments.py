"""What the measuring commands have in common: options with one meaning, and how a command ends."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from bench.cells import Subject
from bench.machine import ROOT
from bench.workload import HELD_OUT, KINDS, LONGEST, Workload, read_texts
from cli.arguments import several, whole
from deployments.progress import loading
from model.files import resolve
from model.load import WeightFormat
from model.native.library import default_threads
from protocol.errors import ConfigError, DraftPoolError

MODELS, RESULTS = ROOT / "demo/models", ROOT / "bench/results"
CONFIG = ROOT / "deployments/configs/demo.yaml"


def plain_parser(description: str | None, out: str | None = None) -> ArgumentParser:
    """out: the file in bench/results that a result goes to unless told; None: it has to be told."""
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=out is None, default=RESULTS / (out or ""))
    return parser


def pairs_parser(description: str | None, out: str, **defaults: object) -> ArgumentParser:
    """Interleaved repetitions of every depth and length, with the demo drafter. defaults: in place of the usual."""
    parser = plain_parser(description, out)
    parser.add_argument("--drafter", type=checkpoint, default=MODELS / "drafter")
    add_weights(parser)
    parser.add_argument("--workload", choices=KINDS, default="mixed", help="lengths of prompts (default: mixed)")
    parser.add_argument("--pairs", type=whole(2), default=15, help="interleaved repetitions (default: 15)")
    add_settings(parser)
    parser.set_defaults(num_prompts=4, **defaults)
    return parser


def add_settings(parser: ArgumentParser) -> None:
    """Depths and lengths to draft at, and the prompts."""
    add = parser.add_argument
    add("--depths", type=several(whole(1)), default=[2, 4, 6], help="default: 2,4,6")
    add("--lengths", type=several(whole(1, 64)), default=[1, 2, 3, 4, 6, 8], help="default: 1,2,3,4,6,8")
    add("--prompts", type=Path, default=HELD_OUT, help="JSON lines; Spec-Bench's are split by category")
    add("--num-prompts", type=whole(1), default=8, help="of each cell, at the least (default: %(default)s)")
    add("--max-tokens", type=whole(2), default=128, help="of each prompt (default: %(default)s)")


def add_target(parser: ArgumentParser) -> None:
    parser.add_argument("--target", type=checkpoint, default=MODELS / "large", help="folder, GGUF file or hub id")


def checkpoint(text: str) -> Path:
    try:
        with loading(text):
            return resolve(text)
    except ConfigError as error:
        raise ArgumentTypeError(str(error)) from None


def add_weights(parser: ArgumentParser, default: WeightFormat = WeightFormat.STORED) -> None:
    parser.add_argument("--weights", choices=[*WeightFormat], default=default, help="of the target: %(default)s")


def add_threads(parser: ArgumentParser) -> None:
    parser.add_argument("--threads", type=whole(1), default=default_threads())


def add_sweep(parser: ArgumentParser, repeat: int) -> None:
    parser.add_argument("--sweep", type=whole(1), default=repeat, help=f"repetitions of every setting ({repeat})")


def subject_of(args: Namespace, target: Path, max_batch: int, threads: int) -> Subject:
    """A target and the drafter of `pairs_parser`."""
    longest = LONGEST + args.max_tokens
    return Subject(target, args.drafter, torch.bfloat16, threads, max_batch, longest, WeightFormat(args.weights))


def workload_of(args: Namespace, target: Path, num_prompts: int) -> Workload:
    return Workload(read_texts(args.prompts, AutoTokenizer.from_pretrained(target)), args.workload, num_prompts)


def given(args: Namespace, *names: str) -> dict[str, Any]:
    """The options of these names, to stand in a result."""
    return {name: getattr(args, name) for name in names}


def ended(name: str, run: Callable[[Namespace], int], args: Namespace) -> int:
    """The exit status: 2, and one line, for what the user can mend."""
    try:
        return run(args)
    except DraftPoolError as error:
        sys.stderr.write(f"{name}: {error}\n")
        return 2
