"""What a request changes of the logits before a token is picked, and what it is told of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from protocol.errors import InvalidRequest

MAX_BIASED = 1024  # tokens
MAX_BIAS = 100.0
MAX_PENALTY = 2.0
MIN_REPETITION, MAX_REPETITION = 0.01, 100.0
MAX_TOP = 20  # tokens that are told at a place beside the picked one
MAX_TOLD = 1 << 20  # logprobs of one request: 16 MiB on their way
LOWEST = -9999.0  # a logprob as callers are told it, as OpenAI's: JSON has no infinity


@dataclass(frozen=True, slots=True)
class LogitRules:
    """What happens to the logits of a place. It depends on the tokens before the place and on nothing else.

    In this order, as in vLLM:

        bias                added, by token
        repetition_penalty  divides the logits of tokens of the prompt or the text; multiplies those below 0
        frequency_penalty   subtracted for each time that the text has the token
        presence_penalty    subtracted once if the text has the token
        min_tokens          before so many tokens of text none of `withheld` is picked

    The text is what was generated, the drafted tokens before the place included.
    """

    bias: tuple[tuple[int, float], ...] = field(default=(), repr=False)
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    withheld: frozenset[int] = field(default=frozenset(), repr=False)

    def __post_init__(self) -> None:
        if len(self.bias) > MAX_BIASED:
            raise InvalidRequest(f"logit_bias has {len(self.bias)} tokens; send {MAX_BIASED} at most", "logit_bias")
        for token, bias in self.bias:
            if not -MAX_BIAS <= bias <= MAX_BIAS:
                where = f"logit_bias {bias} of token {token}"
                raise InvalidRequest(f"{where} is not in [-100, 100]; -100 all but bans a token", "logit_bias")
        for name in ("frequency_penalty", "presence_penalty"):
            if not -MAX_PENALTY <= (value := getattr(self, name)) <= MAX_PENALTY:
                raise InvalidRequest(f"{name} {value} is not in [-2, 2]; 0 turns it off", name)
        if not MIN_REPETITION <= self.repetition_penalty <= MAX_REPETITION:
            raise InvalidRequest(
                f"repetition_penalty {self.repetition_penalty} is not in [{MIN_REPETITION}, {MAX_REPETITION:.0f}]; "
                "1 turns it off",
                "repetition_penalty",
            )
        if self.min_tokens < 0:
            raise InvalidRequest(f"min_tokens {self.min_tokens} is negative; 0 turns it off", "min_tokens")

    @property
    def penalises(self) -> bool:
        """Whether tokens are counted."""
        return bool(self.frequency_penalty or self.presence_penalty or self.repetition_penalty != 1)

    def acts_behind(self, num_generated: int) -> bool:
        """Whether anything changes at this place of the text or a later one."""
        return bool(self.bias or self.penalises or (self.withheld and num_generated < self.min_tokens))

    def over(self, tokens: Sequence[int], num_prompt: int) -> Ruled | None:
        """Themselves and what they read; None where nothing changes behind these tokens."""
        return Ruled(self, num_prompt, tokens) if self.acts_behind(len(tokens) - num_prompt) else None


NO_RULES = LogitRules()


@dataclass(frozen=True, slots=True)
class Ruled:
    """A text under rules. tokens: the prompt's first."""

    rules: LogitRules
    num_prompt: int
    tokens: Sequence[int] = field(repr=False)

    def is_held_at(self, length: int) -> bool:
        """Whether tokens are withheld behind so many."""
        return length - self.num_prompt < self.rules.min_tokens


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Logprobs at the place of one token of the text, or of a prompt that is told, under the model's own distribution:
    temperature 1, and before rules and filters. top: the most probable tokens, best first.
    """

    chosen: float
    top: tuple[tuple[int, float], ...] = field(default=(), repr=False)


def check_top(count: int, name: str) -> None:
    """Raises InvalidRequest. name: the caller's for the number of tokens to be told."""
    if not 0 <= count <= MAX_TOP:
        raise InvalidRequest(f"{name} {count} is not in [0, {MAX_TOP}]; send {MAX_TOP} at most", name)


def check_rules(rules: LogitRules, vocab_size: int) -> None:
    """Raises InvalidRequest for a bias outside the vocabulary, or if no token would be left to pick."""
    if outside := [token for token, _ in rules.bias if not 0 <= token < vocab_size]:
        raise InvalidRequest(
            f"logit_bias has token {outside[0]}, which is outside the vocabulary of {vocab_size}; leave it out",
            "logit_bias",
        )
    if rules.min_tokens and sum(0 <= token < vocab_size for token in rules.withheld) == vocab_size:
        raise InvalidRequest(
            f"min_tokens {rules.min_tokens} leaves no token, because all {vocab_size} of them stop; send 0",
            "min_tokens",
        )
