"""`draftpool trim`: cuts the LM head of a drafter to the tokens that occur most in a corpus, or in served traffic."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from rich.table import Table

from cli.arguments import real, whole
from cli.output import listed, say, table, warn
from cli.token_counts import read_counts
from deployments.process import DTYPES
from drafters.head import Counts, coverage
from drafters.manifest import Manifest, vocabulary_hash
from drafters.training.config import Corpus
from drafters.trim import SIZES, count_corpus, head_tokens, read_trimmable, write_trimmed
from drafters.trim_choice import Head, Prediction, TrimCosts, fastest, predict
from drafters.trim_cost import measure
from model.config import DecoderConfig
from model.files import resolve
from model.load import WeightFormat
from model.native.library import default_threads
from protocol.errors import ConfigError

AUTO = "auto"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="the drafter: directory, GGUF file, file of a package, or hub id")
    add("out", type=Path, metavar="OUT", help="new folder, which names the checkpoint and the tokens of its head")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--corpus", nargs="+", type=Path, metavar="FILE", help="what targets write: text or .jsonl")
    counted = "what targets wrote: a server's URL, or a file with what its /debug/tokens told (count_tokens: true)"
    what.add_argument("--counts", metavar="FILE_OR_URL", help=counted)
    add("--field", default="text", help="of a .jsonl line (default: %(default)s)")
    add("--size", type=size, default=AUTO, help="rows of the head, or auto: the fastest, measured here (default)")
    add("--target", metavar="CHECKPOINT", help="whose passes count for --size auto: directory, GGUF file, or hub id")
    add("--depth", type=whole(1), help="the exit that is measured (default: the deepest)")
    add("--acceptance", type=real(0, 1), default=0.7, help="of a token that the head has (default: %(default)s)")
    add("--dtype", choices=sorted(DTYPES), default="bf16", help="that is measured (default: %(default)s)")
    add("--weights", choices=[*WeightFormat], default=WeightFormat.STORED, help="of both models: %(default)s")
    add("--threads", type=whole(1), default=default_threads(), help="default: %(default)s")
    add("--repeat", type=whole(1), default=15, help="measured turns (default: %(default)s)")


def size(text: str) -> int | str:
    return AUTO if text == AUTO else whole(2)(text)


def run(args: argparse.Namespace) -> int:
    folder = resolve(args.folder)
    config = read_trimmable(folder)
    if args.out.exists() and any(args.out.iterdir()):
        raise ConfigError(f"{args.out} is not empty; name a new folder")
    if args.size == AUTO and not args.target:
        raise ConfigError("--size auto needs --target, whose passes are measured; give it, or a number of rows")
    counts = counts_of(args, folder, config)
    chosen = args.size
    if chosen == AUTO:
        predictions = predict(measured_costs(args, folder, config, counts))
        say(report(predictions))
        warn(doubts(predictions))
        chosen = fastest(predictions).head.size
        if chosen == config.vocab_size:
            say("the full head is the fastest: nothing is written")
            return 1
    token_ids = head_tokens(folder, config, counts, chosen)
    write_trimmed(args.folder, args.out, token_ids)
    rows, share = f"{len(token_ids)} of {config.vocab_size} rows", coverage(counts, token_ids)
    say(f"{args.out}: {rows}, {share:.2%} of what was counted")
    return 0


def counts_of(args: argparse.Namespace, folder: Path, config: DecoderConfig) -> Counts:
    """How often each of the drafter's tokens is written."""
    if args.corpus:
        return count_corpus(folder, config, Corpus(files=args.corpus, field=args.field))
    return read_counts(args.counts, config.vocab_size, vocabulary_hash(folder))


def measured_costs(args: argparse.Namespace, folder: Path, config: DecoderConfig, counts: Counts) -> TrimCosts:
    """The costs of every size that is smaller than the vocabulary, and of the full head."""
    torch.set_num_threads(args.threads)
    heads = {size: head_tokens(folder, config, counts, size) for size in SIZES if size < config.vocab_size}
    shares = {size: coverage(counts, head) for size, head in heads.items()} | {config.vocab_size: 1.0}
    depth = measured_depth(folder, args.depth)
    costs = measure(
        folder, depth, list(shares), resolve(args.target), DTYPES[args.dtype], WeightFormat(args.weights), args.repeat
    )
    candidates = tuple(Head(size, share, costs.head_ms[size]) for size, share in shares.items())
    return TrimCosts(candidates, costs.layers_ms, args.acceptance, costs.verify_ms)


def measured_depth(folder: Path, depth: int | None) -> int:
    exits = Manifest.load(folder).exits
    if depth is not None and depth not in exits:
        raise ConfigError(f"--depth {depth} is no exit of {folder}; choose among {listed(exits)}")
    return depth or exits[-1]


def doubts(predictions: Sequence[Prediction]) -> Iterator[str]:
    times = [one.head.ms for one in predictions]
    if times != sorted(times):
        yield "more rows did not take more time: the machine is busy; measure again, or with a larger --repeat"


def report(predictions: Sequence[Prediction]) -> Table:
    """Against the last, which is the full head."""
    full = predictions[-1].tokens_per_s
    rows: Iterable[tuple[str, ...]] = (
        (
            str(one.head.size),
            f"{one.head.coverage:.2%}",
            f"{one.head.ms:.3f}",
            str(one.length),
            f"{one.tokens_per_s / full:.3f}",
        )
        for one in predictions
    )
    heads = ("rows", "coverage", "head ms", "length", "tokens/s over full")
    return table("LM head", (), heads, rows)
