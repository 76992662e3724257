"""`draftpool generate`: completes prompts in this process, without Ray, and streams the text."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from api.prompts import check_text
from api.text import Detokenizer, continuation
from cli.arguments import seed, whole
from cli.prompts import PromptLine, read_prompts
from deployments.config_replica import Weights
from deployments.local import LocalDrafter, draft_policy, open_drafter
from deployments.process import DTYPES, check_pages, pool_positions, target_positions
from deployments.progress import BAR_AFTER_S, loading
from drafters.translation import translation_between
from model.config import read_config
from model.execution import Execution
from model.files import resolve
from model.load import WeightFormat
from model.native.library import default_threads
from model.tokenizer import end_tokens, load_tokenizer
from protocol.errors import ConfigError, InvalidRequest
from protocol.request import GenerateRequest, SamplingParams, StopRules, TokenRun, check_prompt
from targets.complete import Completion, complete
from targets.engine import Engine, EngineConfig
from targets.model import TargetModel, load_target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--target", required=True, help="checkpoint directory, GGUF file, or hub id")
    add("--drafter", help="checkpoint directory (default: plain decoding)")
    add("--depth", type=whole(1), help="an exit of the drafter, counted in layers (default: the deepest)")
    add("--length", type=whole(0, 64), default=4, help="tokens drafted per round (default: %(default)s)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", help="text to complete")
    source.add_argument("--prompts", type=Path, help='file with one {"prompt": ..., "seed": ...} per line')
    add("--batch", type=whole(1), default=16, help="sequences decoded together (default: %(default)s)")
    add("--max-tokens", type=whole(1), default=128, help="default: %(default)s")
    add("--ignore-eos", action="store_true", help="continue to --max-tokens")
    add("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    add("--top-p", type=float, default=1.0, help="1 is off (default)")
    add("--top-k", type=whole(0), default=0, help="0 is off (default)")
    add("--min-p", type=float, default=0.0, help="0 is off (default)")
    add("--seed", type=seed, default=0, help="seed of every line without one (default: %(default)s)")
    add("--execution", choices=[*Execution], default=Execution.AUTO, help="native kernels or plain torch: %(default)s")
    add("--deterministic", action="store_true", help="refuse to run on kernels that are not deterministic")
    add("--dtype", choices=sorted(DTYPES), default="bf16", help="default: %(default)s")
    add("--weights", choices=[*WeightFormat], default=WeightFormat.STORED, help="of both models: %(default)s")
    add("--threads", type=whole(1), default=default_threads(), help="default: %(default)s")
    add("--page-size", type=whole(1), default=256, help="KV positions per page (default: %(default)s)")
    add("--kv-mb", type=whole(1), default=1024, help="KV memory per model (default: %(default)s)")
    add("--json", action="store_true", help="one JSON line per prompt, in order")


def run(args: argparse.Namespace) -> int:
    torch.set_num_threads(args.threads)
    single = PromptLine(args.prompt, args.seed, "--prompt")
    prompts = read_prompts(args.prompts, args.seed) if args.prompts else [single]
    weights = Weights(path=args.target, dtype=args.dtype, page_size=args.page_size, kv_mb=args.kv_mb)
    with loading(args.target):
        tokenizer = load_tokenizer(resolve(args.target))
    requests = make_requests(args, weights, prompts, tokenizer)
    model, drafter = open_models(args, weights)
    config = EngineConfig(max_batch=args.batch, max_queue=len(prompts))
    policy, client = draft_policy(drafter, args.depth, args.length), drafter.client if drafter else None
    streamed = len(requests) == 1 and not args.json
    with (
        Engine(model, policy, client, config) as engine,
        tqdm(total=len(requests), unit="prompt", delay=BAR_AFTER_S, disable=streamed) as bar,
    ):
        write = writer(tokenizer, requests[0].prompt_ids)
        completions = complete(engine, requests, write if streamed else lambda run: advance(bar, run))
    for prompt, request, completion in zip(prompts, requests, completions, strict=True):
        text = continuation(tokenizer, request.prompt_ids, completion.token_ids)
        if args.json:
            sys.stdout.write(json.dumps(json_line(completion, text)) + "\n")
        elif not streamed:
            sys.stdout.write(f"{prompt.text}{text}\n---\n")
    if not args.json:
        sys.stderr.write("\n".join(map(summary, completions)) + "\n")
    return 0


def make_requests(
    args: argparse.Namespace, weights: Weights, prompts: Sequence[PromptLine], tokenizer: Any
) -> list[GenerateRequest]:
    """The requests, made before any weight is read. Raises ConfigError that names the place of an invalid prompt."""
    target = resolve(args.target)
    config, num_positions = read_config(target), target_positions(weights, target)
    check_pages(args.target, weights, num_positions)
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


def open_models(args: argparse.Namespace, weights: Weights) -> tuple[TargetModel, LocalDrafter | None]:
    """Loads the target, and the drafter if one is given. Each has --kv-mb of KV memory."""
    target = resolve(args.target)
    options: dict[str, Any] = {"dtype": DTYPES[args.dtype], "page_size": args.page_size}
    options |= {"execution": Execution(args.execution), "weights": WeightFormat(args.weights)}
    with loading(args.target) as progress:
        model = load_target(
            target,
            num_positions=target_positions(weights, target),
            deterministic=args.deterministic,
            progress=progress,
            **options,
        )
    if args.drafter is None:
        return model, None
    with loading(args.drafter):
        drafter = resolve(args.drafter)
        num_positions, translation = pool_positions(weights, drafter), translation_between(target, drafter)
        sizes = {"num_positions": num_positions, "max_rows": args.batch}
        return model, open_drafter(model, target, drafter, translation=translation, **sizes, **options)


def advance(bar: tqdm[Any], run: TokenRun) -> None:
    bar.update(run.finish_reason is not None)


def writer(tokenizer: Any, prompt_ids: Sequence[int]) -> Callable[[TokenRun], None]:
    """Writes the text of one completion as it arrives."""
    detokenizer = Detokenizer(tokenizer, prompt_ids)

    def write(run: TokenRun) -> None:
        text = detokenizer.push(run.token_ids)
        if run.finish_reason is not None:
            text += detokenizer.finish() + "\n"
        sys.stdout.write(text)
        sys.stdout.flush()

    return write


def json_line(completion: Completion, text: str) -> dict[str, object]:
    stats = completion.stats
    return {
        "token_ids": list(completion.token_ids),
        "text": text,
        "finish_reason": completion.finish_reason.value,
        "rounds": stats.rounds,
        "drafted": stats.drafted,
        "accepted": stats.accepted,
        "tokens_per_second": round(completion.tokens_per_second, 2),
    }


def summary(completion: Completion) -> str:
    stats = completion.stats
    return (
        f"{len(completion.token_ids)} tokens in {stats.rounds} rounds, {stats.accepted} of {stats.drafted} drafted "
        f"accepted, {completion.tokens_per_second:.1f} tokens/s, {completion.finish_reason.value}"
    )
