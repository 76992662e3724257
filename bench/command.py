"""`draftpool bench`: our loops and their peers on the same prompts and weights, in one interleaved run."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm
from transformers import AutoTokenizer

from bench import machine
from bench.arguments import add_settings, add_threads, add_weights, checkpoint, given
from bench.cells import OURS, Subject
from bench.grid import MODES, PEERS, Grid
from bench.metrics import CellResult
from bench.policies import NOSTOP
from bench.report import save
from bench.run import Engines, measure, opened
from bench.workload import EQUAL, KINDS, LONGEST, Workload, read_texts
from cli.arguments import one_of, several, whole
from deployments.process import DTYPES
from model.load import WeightFormat
from protocol.errors import ConfigError

DRAFTING = (*OURS[1:], "assisted", "openvino-draft")


def run(args: argparse.Namespace) -> int:
    check(args)
    subject = make_subject(args)
    texts = read_texts(args.prompts, AutoTokenizer.from_pretrained(subject.target))
    workload = Workload(texts, args.workload, args.num_prompts, args.prompt_tokens)
    grid = Grid(
        args.modes, args.batch, args.depths, args.lengths, args.temperature, workload.categories, args.kept_full
    )
    cells = grid.cells()
    place, settings = machine.describe(), settings_of(args, subject)
    with opened(subject, args.modes, args.url, args.url_model) as engines:
        place |= {"engines": engines.versions}
        with tqdm(total=(args.repeat + 1) * len(cells), unit="cell", disable=None) as bar:

            def keep(results: Sequence[CellResult]) -> None:
                bar.update()
                if results and args.out is not None:
                    save(results, settings, place, engines.left_out, args.out)

            results = measure(engines, cells, workload, repeat=args.repeat, max_tokens=args.max_tokens, tick=keep)
        say_left_out(engines)
    for result in results:
        if args.json:
            sys.stdout.write(json.dumps(result.as_json()) + "\n")
    text = save(results, settings, place, engines.left_out, args.out)
    if not args.json:
        sys.stdout.write(text)
    return 0 if results else 1


def settings_of(args: argparse.Namespace, subject: Subject) -> dict[str, object]:
    """What a result says of the run, beside its cells."""
    drafter = subject.drafter.name if subject.drafter else "none"
    settings = {"target": subject.target.name, "drafter": drafter, "prompts": args.prompts.name}
    settings |= {"ngram": args.ngram} if "llamacpp-ngram" in args.modes else {}
    settings |= {"draft_gguf": subject.draft_gguf.name} if subject.draft_gguf else {}
    settings |= {"prompt_tokens": args.prompt_tokens} if args.workload == "equal" else {}
    return settings | given(args, "workload", "num_prompts", "max_tokens", "dtype", "weights", "repeat")


def check(args: argparse.Namespace) -> None:
    """Raises ConfigError for what would otherwise fail after minutes."""
    if args.drafter is None and any(mode in DRAFTING for mode in args.modes):
        raise ConfigError(f"modes {', '.join(DRAFTING)} need --drafter; give one, or leave them out of --modes")
    if ("url" in args.modes) != (args.url is not None):
        raise ConfigError("mode url and --url go together; give both or neither")
    if "llamacpp-draft" in args.modes and (args.draft_gguf is None or not args.draft_gguf.is_file()):
        raise ConfigError("mode llamacpp-draft needs --draft-gguf, a GGUF file with the target's vocabulary")


def make_subject(args: argparse.Namespace) -> Subject:
    longest = args.prompt_tokens if args.workload == "equal" else LONGEST
    return Subject(
        target=args.target,
        drafter=args.drafter,
        draft_gguf=args.draft_gguf,
        ngram=args.ngram,
        dtype=DTYPES[args.dtype],
        threads=args.threads,
        max_batch=max(args.batch),
        max_length=longest + args.max_tokens,
        weights=WeightFormat(args.weights),
    )


def say_left_out(engines: Engines) -> None:
    for mode, reason in engines.left_out.items():
        sys.stderr.write(f"draftpool: mode {mode} is left out: {reason}\n")


def temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 100.0:
        raise argparse.ArgumentTypeError(f"{text!r} is no temperature; give a number from 0 to 100")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--target", type=checkpoint, required=True, help="checkpoint directory, GGUF file or hub id")
    add("--drafter", type=checkpoint, help="checkpoint directory")
    add("--draft-gguf", type=Path, metavar="FILE", help="the draft model of mode llamacpp-draft")
    add("--ngram", type=whole(1), default=12, help="tokens that repeat before llamacpp-ngram drafts (default: its 12)")
    add("--batch", type=several(whole(1)), default=[1, 8], help="batch sizes (default: 1,8)")
    modes = (*(mode for mode in OURS if mode != NOSTOP), *PEERS)
    add("--modes", type=several(one_of(*MODES)), default=list(modes), help=f"default: {','.join(modes)}")
    add_settings(parser)
    add("--temperature", type=several(temperature), default=[0.0], help="one or several (default: 0, greedy)")
    add("--kept-full", type=whole(0), default=0, metavar="N", help="also keep the batch full, N more batches queued")
    kinds = "prompts of 32 to 512 tokens, of equal length, or as they are"
    add("--workload", choices=KINDS, default="mixed", help=kinds)
    add("--prompt-tokens", type=whole(1), default=EQUAL, help="of each prompt of equal length (default: %(default)s)")
    add("--dtype", choices=sorted(DTYPES), default="bf16", help="default: %(default)s")
    add_weights(parser)
    add_threads(parser)
    add("--repeat", type=whole(1), default=5, help="repetitions, interleaved (default: %(default)s)")
    add("--url", help="an OpenAI-compatible server, for mode url")
    add("--url-model", help="its model (default: the first that it lists)")
    add("--json", action="store_true", help="one JSON line a cell, instead of a table")
    kept = "result as JSON, with a table; written anew after every cell, so an interrupted run keeps what it has"
    add("--out", type=Path, metavar="FILE", help=kept)
