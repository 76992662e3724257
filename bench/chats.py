"""Question: how much sooner does an answer begin in a chat whose earlier turns are still in the target's KV?

A turn is a question behind all that was said before. Chats run on a target that keeps beginnings, and on the same one
made to forget before every turn, in interleaved repetitions; no two chats begin alike.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from statistics import median

import torch

from bench import machine
from bench.arguments import add_target, add_threads, add_weights, ended, given, plain_parser
from bench.ours import requests
from bench.stats import paired_ratio
from cli.arguments import whole
from model.load import WeightFormat
from router.policy import Off
from targets.complete import complete
from targets.engine import Engine, EngineConfig
from targets.model import TargetModel, load_target

PAGE = 32  # KV positions, as served

Turns = list[tuple[int, float]]  # tokens before each answer, and the milliseconds to its first token


def chat(engine: Engine, model: TargetModel, args: Namespace, number: int, keeps: bool) -> Turns:
    said, turns, num_tokens = [number], Turns(), model.decoder.config.vocab_size
    for turn in range(args.turns):
        said += [(100 + number + turn + place) % num_tokens for place in range(args.question)]
        if not keeps:
            model.ledger.forget()
        asked = requests([said], 0.0, args.answer)
        began = time.perf_counter()
        (answer,) = complete(engine, asked)
        turns.append((len(said), 1e3 * (answer.first_s - began)))
        said += answer.token_ids
    return turns


def measure(args: Namespace) -> list[tuple[Turns, Turns]]:
    """Chats whose earlier turns are kept, and chats that are read anew, by repetition."""
    torch.set_num_threads(args.threads)
    length = 1 + args.turns * (args.question + args.answer)
    sizes = {"num_positions": 2 * length + 4 * PAGE, "page_size": PAGE}
    model = load_target(args.target, dtype=torch.bfloat16, weights=WeightFormat(args.weights), **sizes)
    with Engine(model, Off(), None, EngineConfig(max_batch=1)) as engine:
        chat(engine, model, args, 0, keeps=False)  # warms up
        return [
            (chat(engine, model, args, 2 * pair + 1, True), chat(engine, model, args, 2 * pair + 2, False))
            for pair in range(args.pairs)
        ]


def table(pairs: Sequence[tuple[Turns, Turns]], place: dict[str, object]) -> str:
    """ratio: how many times as long the first token takes where all is read anew."""
    rows = []
    for turn, (context, _) in enumerate(pairs[0][0]):
        kept, anew = ([one[turn][1] for one in way] for way in zip(*pairs, strict=True))
        ratio = paired_ratio(anew, kept)
        rows.append((turn + 1, context, f"{median(kept):.0f}", f"{median(anew):.0f}", ratio.text()))
    heads = ("turn", "tokens before the answer", "first token, ms", "read anew, ms", "ratio")
    return machine.markdown(heads, rows, machine.footer(place))


def run(args: Namespace) -> int:
    place = machine.describe()
    pairs = measure(args)
    settings = given(args, "turns", "question", "answer", "pairs", "weights")
    machine.publish(args.out, {"machine": place, "settings": settings, "pairs": pairs}, table(pairs, place))
    return 0


def main() -> int:
    parser = plain_parser(__doc__, "chats.json")
    add_target(parser)
    add_threads(parser)
    add_weights(parser)
    add = parser.add_argument
    add("--turns", type=whole(2), default=8, help="of a chat (default: %(default)s)")
    add("--question", type=whole(1), default=40, help="tokens (default: %(default)s)")
    add("--answer", type=whole(1), default=80, help="tokens (default: %(default)s)")
    add("--pairs", type=whole(2), default=7, help="interleaved repetitions (default: %(default)s)")
    return ended("bench.chats", run, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
