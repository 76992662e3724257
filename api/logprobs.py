"""The shapes in which OpenAI's two routes tell logprobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from api.scores import Score, ScoredToken
from protocol.logit_rules import LOWEST

Json = dict[str, Any]


def completion_logprobs(scores: Sequence[Score]) -> Json:
    """Lists over the tokens. The most probable tokens are an object that also has the token itself, as in vLLM.

    The first token of a prompt has null in place of both.
    """
    return {
        "tokens": [_name(score.chosen) for score in scores],
        "token_logprobs": [_finite(score.chosen) for score in scores],
        "top_logprobs": [_tops(score) for score in scores],
        "text_offset": [score.offset for score in scores],
    }


def chat_logprobs(scores: Sequence[Score]) -> Json:
    content = [_entry(score.chosen) | {"top_logprobs": list(map(_entry, score.top))} for score in scores]
    return {"content": content, "refusal": None}


def _entry(token: ScoredToken) -> Json:
    return {"token": token.text, "logprob": _finite(token), "bytes": list(token.spelling)}


def _tops(score: Score) -> dict[str, float | None] | None:
    """Of tokens with one name, the first."""
    if score.chosen.logprob is None:
        return None
    return {_name(token): _finite(token) for token in reversed((score.chosen, *score.top))}


def _name(token: ScoredToken) -> str:
    """Bytes that are not whole characters are marked, so that they are not taken for text."""
    is_whole = token.text.encode("utf-8") == token.spelling
    return token.text if is_whole else f"bytes:{token.text}"


def _finite(token: ScoredToken) -> float | None:
    return None if token.logprob is None else max(token.logprob, LOWEST)
