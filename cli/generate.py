"""`draftpool generate`: completes prompts in this process, without Ray, and streams the text."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from api.prompts import check_text
from api.text import Detokenizer, continuation
from cli.arguments import depth, seed, whole
from cli.prompts import PromptLine, read_prompts
from deployments.config_replica import Weights
from deployments.local import draft_policy, open_engine, open_worker
from deployments.process import DTYPES, check_pages, pool_positions, target_positions
from deployments.progress import BAR_AFTER_S, loading
from drafters.manifest import check_vocabulary
from drafters.worker import DraftWorker
from model.config import read_config
from model.execution import Execution
from model.files import resolve
from model.native.library import default_threads
from model.tokenizer import end_tokens, load_tokenizer
from protocol.errors import ConfigError, InvalidRequest
from protocol.request import GenerateRequest, SamplingParams, StopRules, TokenRun, check_prompt
from targets.complete import Completion, complete
from targets.engine import EngineConfig
from targets.model import TargetModel, load_target


def run(args: argparse.Namespace) -> int:
    torch.set_num_threads(args.threads)
    prompts = (
        read_prompts(args.prompts, args.seed) if args.prompts else [PromptLine(args.prompt, args.seed, "--prompt")]
    )
    tokenizer = load_tokenizer(resolve(args.target))
    requests = make_requests(args, prompts, tokenizer)
    model, worker = open_models(args)
    config = EngineConfig(max_batch=args.batch, max_queue=len(prompts))
    engine = open_engine(model, worker, draft_policy(worker, args.depth, args.length), config)
    try:
        stream = _Streamer(tokenizer, requests[0].prompt_ids) if len(requests) == 1 and not args.json else None
        with tqdm(total=len(requests), unit="prompt", delay=BAR_AFTER_S, disable=stream is not None) as bar:
            completions = complete(engine, requests, stream.write if stream else _advance(bar))
    finally:
        engine.stop()
    texts = [
        continuation(tokenizer, request.prompt_ids, made.token_ids)
        for request, made in zip(requests, completions, strict=True)
    ]
    report(prompts, completions, texts, as_json=args.json, streamed=stream is not None)
    return 0


def make_requests(args: argparse.Namespace, prompts: Sequence[PromptLine], tokenizer: Any) -> list[GenerateRequest]:
    """The requests, made before any weight is read. Raises ConfigError that names the place of an invalid prompt."""
    config = read_config(resolve(args.target))
    num_positions = target_positions(weights(args), resolve(args.target))
    check_pages(args.target, weights(args), num_positions)
    room = min(config.max_positions, num_positions // args.page_size * args.page_size)
    ends = () if args.ignore_eos else end_tokens(config.eos_token_ids, tokenizer)
    stop = StopRules(args.max_tokens, frozenset(ends))
    requests = []
    for index, prompt in enumerate(prompts):
        sampling = SamplingParams(args.temperature, args.top_k, args.top_p, args.min_p, prompt.seed)
        try:
            check_text(prompt.text, "the prompt")
            ids = tuple(tokenizer.encode(prompt.text, verbose=False))
            requests.append(GenerateRequest(str(index), ids, sampling, stop))
            check_prompt(requests[-1], room, config.vocab_size)
        except InvalidRequest as error:
            raise ConfigError(f"{prompt.place}: {error}") from None
    return requests


def open_models(args: argparse.Namespace) -> tuple[TargetModel, DraftWorker | None]:
    """Loads the target, and a worker with the drafter if one is given. Each has --kv-mb of KV memory."""
    dtype, target = DTYPES[args.dtype], resolve(args.target)
    num_positions = target_positions(weights(args), target)
    with loading(target) as progress:
        model = load_target(
            target,
            dtype=dtype,
            num_positions=num_positions,
            page_size=args.page_size,
            execution=Execution(args.execution),
            deterministic=args.deterministic,
            progress=progress,
        )
    if args.drafter is None:
        return model, None
    drafter = resolve(args.drafter)
    check_vocabulary(target, drafter)
    num_positions = pool_positions(weights(args), drafter)
    worker = open_worker(
        drafter,
        dtype=dtype,
        num_positions=num_positions,
        page_size=args.page_size,
        max_rows=args.batch,
        execution=Execution(args.execution),
    )
    return model, worker


def weights(args: argparse.Namespace) -> Weights:
    return Weights(path=args.target, dtype=args.dtype, page_size=args.page_size, kv_mb=args.kv_mb)


def _advance(bar: tqdm[NoReturn]) -> Callable[[TokenRun], None]:
    def advance(run: TokenRun) -> None:
        bar.update(run.finish_reason is not None)

    return advance


class _Streamer:
    """Writes the text of one completion as it arrives."""

    def __init__(self, tokenizer: Any, prompt_ids: Sequence[int]) -> None:
        self._detokenizer = Detokenizer(tokenizer, prompt_ids)

    def write(self, run: TokenRun) -> None:
        text = self._detokenizer.push(run.token_ids)
        if run.finish_reason is not None:
            text += self._detokenizer.finish() + "\n"
        sys.stdout.write(text)
        sys.stdout.flush()


def report(
    prompts: Sequence[PromptLine],
    completions: Sequence[Completion],
    texts: Sequence[str],
    *,
    as_json: bool,
    streamed: bool,
) -> None:
    for prompt, completion, text in zip(prompts, completions, texts, strict=True):
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
    parser.add_argument("--drafter", help="checkpoint directory (default: plain decoding)")
    parser.add_argument("--depth", type=depth, help="an exit of the drafter, or cascade (default: the deepest)")
    parser.add_argument(
        "--length", type=whole(0, 64), default=4, help="tokens drafted per round (default: %(default)s)"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", help="text to complete")
    source.add_argument("--prompts", type=Path, help='file with one {"prompt": ..., "seed": ...} per line')
    parser.add_argument("--batch", type=whole(1), default=16, help="sequences decoded together (default: %(default)s)")
    parser.add_argument("--max-tokens", type=whole(1), default=128, help="default: %(default)s")
    parser.add_argument("--ignore-eos", action="store_true", help="continue to --max-tokens")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--top-p", type=float, default=1.0, help="1 is off (default)")
    parser.add_argument("--top-k", type=whole(0), default=0, help="0 is off (default)")
    parser.add_argument("--min-p", type=float, default=0.0, help="0 is off (default)")
    parser.add_argument("--seed", type=seed, default=0, help="seed of every line without one (default: %(default)s)")
    parser.add_argument(
        "--execution", choices=[*Execution], default=Execution.AUTO, help="native kernels or plain torch: %(default)s"
    )
    parser.add_argument(
        "--deterministic", action="store_true", help="refuse to run on kernels that are not deterministic"
    )
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bf16", help="default: %(default)s")
    parser.add_argument("--threads", type=whole(1), default=default_threads(), help="default: %(default)s")
    parser.add_argument("--page-size", type=whole(1), default=256, help="KV positions per page (default: %(default)s)")
    parser.add_argument("--kv-mb", type=whole(1), default=1024, help="KV memory per model (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON line per prompt, in order")
