"""Requests with grammars of every kind, for a tiny target that has the tokenizer of tests/api."""

from __future__ import annotations

import random
from typing import Any

from llguidance import LLMatcher

from protocol.request import GenerateRequest, SamplingParams, StopRules
from tests.api.api_twins import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
EOS = TOKENIZER.eos_token_id
SCHEMAS: tuple[dict[str, Any], ...] = (
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False},
    {"type": "array", "items": {"enum": ["x", "yes", None]}, "minItems": 1, "maxItems": 3},
    {"type": "boolean"},
)
EXAMPLES = ('{"a":-120}', '["x",null,"yes"]', "false")


def of_schema(schema: dict[str, Any]) -> str:
    return LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False})


def shaped_requests(seed: int, count: int = 8, max_tokens: int = 60, **sampling: Any) -> list[GenerateRequest]:
    """Every other one is sampled; of five, one has no grammar."""
    rng = random.Random(seed)
    grammar = [*map(of_schema, SCHEMAS), LLMatcher.grammar_from_regex("(ab|ba){2,5}!"), ""]
    made = []
    for index in range(count):
        prompt = tuple(rng.randrange(3, len(TOKENIZER)) for _ in range(rng.randint(1, 12)))
        own = SamplingParams(temperature=1.0 * (index % 2), seed=rng.getrandbits(64), **sampling)
        stop = StopRules(max_tokens, frozenset({EOS}))
        made.append(GenerateRequest(str(index), prompt, own, stop, grammar=grammar[index % len(grammar)]))
    return made
