"""`draftpool generate`: complete prompts in this process, without Ray, and stream the text."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from deployments.local import Completion, check_vocabulary, complete, draft_policy, open_engine, open_worker
from deployments.process import DTYPES
from drafters.nested import bytes_per_position
from drafters.worker import DraftWorker
from model.config import read_config
from model.kv import bytes_per_slot
from model.load import resolve
from protocol.errors import ConfigError
from protocol.request import GenerateRequest, SamplingParams, StopRules, TokenRun
from targets.engine import EngineConfig
from targets.model import TargetModel, load_target
from targets.text import Detokenizer, decode


@dataclass(frozen=True, slots=True)
class Prompt:
    text: str
    seed: int


def run(args: argparse.Namespace) -> int:
    torch.set_num_threads(args.threads)
    prompts = read_prompts(args)
    tokenizer = AutoTokenizer.from_pretrained(resolve(args.target))
    config = EngineConfig(max_batch=args.batch, max_queue=len(prompts))
    model, worker = open_models(args)
    eos = frozenset(() if args.ignore_eos else model.decoder.config.eos_token_ids)
    requests = [
        GenerateRequest(
            str(index),
            tuple(tokenizer.encode(prompt.text)),
            SamplingParams(args.temperature, args.top_k, args.top_p, args.min_p, prompt.seed),
            StopRules(args.max_tokens, eos),
        )
        for index, prompt in enumerate(prompts)
    ]
    engine = open_engine(model, worker, draft_policy(worker, args.depth, args.length), config)
    try:
        stream = _Streamer(tokenizer) if len(requests) == 1 and not args.json else None
        with tqdm(total=len(requests), unit="prompt", delay=2, disable=stream is not None) as bar:
            completions = complete(engine, requests, stream.write if stream else _advance(bar))
    finally:
        engine.stop()
    report(prompts, completions, tokenizer, as_json=args.json, streamed=stream is not None)
    return 0


def open_models(args: argparse.Namespace) -> tuple[TargetModel, DraftWorker | None]:
    """The target, and a worker for its drafter when one is given; each with --kv-mb of KV memory."""
    dtype = DTYPES[args.dtype]

    kv_bytes: int = args.kv_mb << 20
    target = resolve(args.target)
    num_positions = kv_bytes // bytes_per_slot(read_config(target), dtype)
    model = load_target(target, dtype=dtype, num_positions=num_positions, page_size=args.page_size)
    if args.drafter is None:
        return model, None
    drafter = resolve(args.drafter)
    check_vocabulary(target, drafter)
    num_positions = kv_bytes // bytes_per_position(drafter, dtype)
    worker = open_worker(
        drafter, dtype=dtype, num_positions=num_positions, page_size=args.page_size, max_rows=args.batch
    )
    return model, worker


def read_prompts(args: argparse.Namespace) -> list[Prompt]:
    """One prompt from --prompt, or one per line of --prompts. Raises ConfigError naming the line."""
    if args.prompt is not None:
        return [Prompt(args.prompt, args.seed)]
    prompts = []
    for number, line in enumerate(args.prompts.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            prompts.append(_prompt_line(line, f"{args.prompts}:{number}", args.seed))
    if not prompts:
        raise ConfigError(f"{args.prompts} holds no prompt; write one JSON object a line")
    return prompts


def _prompt_line(line: str, place: str, seed: int) -> Prompt:
    try:
        fields: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{place} is not JSON: {error.msg}") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("prompt"), str):
        raise ConfigError(f'{place} needs an object with a "prompt" string')
    if not isinstance(fields.get("seed", seed), int):
        raise ConfigError(f'{place}: "seed" must be a whole number')
    return Prompt(fields["prompt"], fields.get("seed", seed))


def _advance(bar: tqdm[NoReturn]) -> Callable[[TokenRun], None]:
    def advance(run: TokenRun) -> None:
        bar.update(run.finish_reason is not None)

    return advance


class _Streamer:
    """Writes one completion's text as it comes."""

    def __init__(self, tokenizer: Any) -> None:
        self._detokenizer = Detokenizer(tokenizer)

    def write(self, run: TokenRun) -> None:
        text = self._detokenizer.push(run.token_ids)
        if run.finish_reason is not None:
            text += self._detokenizer.finish() + "\n"
        sys.stdout.write(text)
        sys.stdout.flush()


def report(
    prompts: Sequence[Prompt], completions: Sequence[Completion], tokenizer: Any, *, as_json: bool, streamed: bool
) -> None:
    for prompt, completion in zip(prompts, completions, strict=True):
        text = decode(tokenizer, completion.token_ids)
        if as_json:
            sys.stdout.write(json.dumps(json_line(completion, text)) + "\n")
        elif not streamed:
            sys.stdout.write(f"{prompt.text}{text}\n---\n")
    if not as_json:
        sys.stderr.write("\n".join(map(summary, completions)) + "\n")


def json_line(completion: Completion, text: str) -> dict[str, object]:
    return {
        "token_ids": list(completion.token_ids),
        "text": text,
        "finish_reason": completion.finish_reason.value,
        "rounds": completion.stats.rounds,
        "drafted": completion.stats.drafted,
        "accepted": completion.stats.accepted,
        "tokens_per_second": round(completion.tokens_per_second, 2),
    }


def summary(completion: Completion) -> str:
    stats = completion.stats
    return (
        f"{len(completion.token_ids)} tokens in {stats.rounds} rounds, {stats.accepted} of {stats.drafted} drafted "
        f"accepted, {completion.tokens_per_second:.1f} tokens/s, {completion.finish_reason.value}"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", required=True, help="checkpoint directory, or hub id")
    parser.add_argument("--drafter", help="checkpoint directory; without it, the plain loop")
    parser.add_argument("--depth", help="an exit of the drafter, or cascade (default: the deepest)")
    parser.add_argument("--length", type=int, default=4, help="tokens drafted per round (default: %(default)s)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", help="text to complete")
    source.add_argument("--prompts", type=Path, help='file with one {"prompt": ..., "seed": ...} a line')
    parser.add_argument("--batch", type=int, default=16, help="sequences decoded together (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--ignore-eos", action="store_true", help="go on to --max-tokens")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--top-p", type=float, default=1.0, help="1 is off (default)")
    parser.add_argument("--top-k", type=int, default=0, help="0 is off (default)")
    parser.add_argument("--min-p", type=float, default=0.0, help="0 is off (default)")
    parser.add_argument("--seed", type=int, default=0, help="of every line without one (default: %(default)s)")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bf16", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--page-size", type=int, default=256, help="KV positions per page (default: %(default)s)")
    parser.add_argument("--kv-mb", type=int, default=1024, help="KV memory per model (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON line per prompt, in order")
