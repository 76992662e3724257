"""Runs of tokens as messages, and the limits of one message."""

from __future__ import annotations

from collections.abc import Sequence

from protocol.checks import REMEDY, at_most, exits, positions, tokens
from protocol.logit_rules import MAX_TOP, TokenLogprobs
from protocol.pb import tokens_pb2 as pb
from protocol.request import TokenRun

MAX_RUNS = 4096  # of a message
MAX_TOKENS = 1 << 18  # of a message, which has 4 MiB, so 16 bytes for each


def weight(logprobs: Sequence[TokenLogprobs]) -> int:
    """As how many tokens one with these logprobs counts, by its bytes and by the time to read it."""
    return 16 + len(logprobs[0].top) if logprobs else 1


def to_message(run: TokenRun) -> pb.Run:
    told = (
        pb.Logprobs(chosen=own.chosen, top_ids=[token for token, _ in own.top], top=[value for _, value in own.top])
        for own in run.logprobs
    )
    return pb.Run(
        request_id=run.request_id,
        index=run.index,
        token_ids=run.token_ids,
        logprobs=told,
        num_cached=run.num_cached,
        sources=run.sources,
    )


def from_message(message: pb.Run) -> TokenRun:
    """Raises ValueError for an invalid message."""
    num_tokens = len(message.token_ids)
    positions(message.index, num_tokens)
    positions(0, message.num_cached)
    for name in ("logprobs", "sources"):
        if (num_told := len(getattr(message, name))) not in (0, num_tokens):
            raise ValueError(f"{num_told} {name} came with {num_tokens} tokens; {REMEDY}")
    told, sources = tuple(map(_logprobs, message.logprobs)), tuple(message.sources)
    exits(filter(None, map(abs, sources)))
    ids, cached = tokens(message.token_ids), message.num_cached
    return TokenRun(message.request_id, message.index, ids, logprobs=told, num_cached=cached, sources=sources)


def _logprobs(message: pb.Logprobs) -> TokenLogprobs:
    if len(message.top) != len(message.top_ids):
        raise ValueError(f"{len(message.top)} logprobs came for {len(message.top_ids)} tokens; {REMEDY}")
    at_most("logprobs at a place", len(message.top), MAX_TOP)
    for value in (message.chosen, *message.top):
        if not value <= 0.0:
            raise ValueError(f"a logprob of {value} is not below 0; {REMEDY}")
    return TokenLogprobs(message.chosen, tuple(zip(tokens(message.top_ids), message.top, strict=True)))
