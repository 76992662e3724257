"""Question: what do weights of few bits cost in perplexity, over the same weights in fp32 and beside llama.cpp?

The text is cut into windows of equal length, each behind BOS where the tokenizer has it begin a text; all tokens of a
window but its first are judged. llama.cpp judges the same token ids with the same file, one token a request.
"""

from __future__ import annotations

import math
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from bench import machine
from bench.arguments import add_target, add_threads, ended, plain_parser
from bench.cells import Unavailable
from bench.peers.llamacpp import llama_cpp
from bench.stats import paired_ratio
from cli.arguments import one_of, several, whole
from deployments.process import DTYPES
from deployments.progress import loading
from drafters.training.distil import logits_at
from model.load import WeightFormat, load_decoder
from model.tokenizer import load_tokenizer
from protocol.errors import ConfigError

Windows = Sequence[list[int]]
REFERENCE, PEER = "dense fp32", "llamacpp"
DTYPES_OF = {WeightFormat.DENSE: ("fp32", "bf16"), WeightFormat.STORED: ("bf16",), WeightFormat.INT8: ("bf16",)}


def windows_of(path: Path, tokenizer: Any, length: int, count: int) -> list[list[int]]:
    """The first `count` whole ones of a text. Raises ConfigError if it holds none."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; name an existing file") from None
    begin, tokens = tokenizer.encode(""), tokenizer.encode(text, add_special_tokens=False, verbose=False)
    step = length - len(begin)
    starts = range(0, len(tokens) - step + 1, step)[:count]
    if not starts:
        raise ConfigError(f"{path} has {len(tokens)} tokens, no window of {length}; lower --window")
    return [[*begin, *tokens[start : start + step]] for start in starts]


def our_losses(target: Path, weights: WeightFormat, dtype: torch.dtype, windows: Windows) -> list[float]:
    """Of each window the mean over its tokens, in nats."""
    with loading(target) as progress:
        decoder = load_decoder(target, dtype=dtype, weights=weights, progress=progress)
    losses = []
    for window in tqdm(windows, unit="window", desc=f"{weights} {dtype}", leave=False, disable=None):
        (logits,) = logits_at(decoder, window, [decoder.config.num_layers])
        losses.append(cross_entropy(logits[:-1].float(), torch.tensor(window[1:], device=logits.device)).item())
    return losses


def their_losses(target: Path, threads: int, windows: Windows) -> list[float]:
    """Raises Unavailable."""
    with llama_cpp(target, threads, len(windows[0]) + 1) as peer:
        bar = tqdm(windows, unit="window", desc=PEER, leave=False, disable=None)
        return [-fmean(peer.log_probabilities(window)) for window in bar]


def judged(args: Namespace, windows: Windows, left_out: dict[str, str]) -> Iterator[tuple[str, list[float]]]:
    for weights in map(WeightFormat, args.weights):
        for dtype in DTYPES_OF[weights]:
            yield f"{weights} {dtype}", our_losses(args.target, weights, DTYPES[dtype], windows)
    for peer in args.peer:
        try:
            yield peer, their_losses(args.target, args.threads, windows)
        except Unavailable as reason:
            left_out[peer] = str(reason)


def run(args: Namespace) -> int:
    torch.set_num_threads(args.threads)
    windows = windows_of(args.text, load_tokenizer(args.target), args.window, args.windows)
    settings = {"target": args.target.name, "text": args.text.name, "windows": len(windows), "window": args.window}
    left_out, losses = dict[str, str](), dict[str, list[float]]()
    report = {"machine": machine.describe(), "settings": settings, "left_out": left_out, "losses": losses}
    for name, of_windows in judged(args, windows, left_out):
        losses[name] = of_windows
        machine.save(args.out, report | {"perplexity": perplexities(losses)}, table(report))
    machine.publish(args.out, report | {"perplexity": perplexities(losses)}, table(report))
    return 0


def perplexities(losses: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: round(math.exp(fmean(of_windows)), 4) for name, of_windows in losses.items()}


def table(report: Mapping[str, Any]) -> str:
    losses, rows = report["losses"], []
    for name, perplexity in perplexities(losses).items():
        over = ("", "")
        if REFERENCE in losses:
            ratio = paired_ratio([*map(math.exp, losses[name])], [*map(math.exp, losses[REFERENCE])])
            over = f"{ratio.median:.4f}", ratio.interval(".4f")
        rows.append((name, f"{perplexity:.3f}", *over))
    notes = [f"Left out: {name} ({reason})." for name, reason in report["left_out"].items()]
    listed = ", ".join(f"{name} {value}" for name, value in report["settings"].items())
    header = ("weights, or peer", "perplexity", f"over {REFERENCE}, median window", "90 % interval")
    return machine.markdown(header, rows, *notes, f"{listed}.", machine.footer(report["machine"]))


def arguments() -> ArgumentParser:
    parser = plain_parser(__doc__)
    add_target(parser)
    add_threads(parser)
    add, formats = parser.add_argument, [*map(str, DTYPES_OF)]
    add("--text", type=Path, required=True, help="UTF-8")
    add("--weights", type=several(one_of(*formats)), default=formats, help=f"default: {','.join(formats)}")
    add("--peer", type=several(one_of(PEER)), default=[], help=PEER)
    add("--window", type=whole(2), default=512, help="tokens (default: %(default)s)")
    add("--windows", type=whole(1), default=16, help="at most so many (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(ended("bench.perplexity", run, arguments().parse_args()))
