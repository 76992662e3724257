"""What a request for text becomes: completions that were checked and can run. HTTP and gRPC make them here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from api.backend import ModelCard
from api.generation_body import GenerationBody
from api.prompts import check_text
from api.text import Shown, TokenDecoder
from protocol.errors import InvalidRequest, PromptTooLong
from protocol.logit_rules import check_rules
from protocol.plan import Speculation
from protocol.request import GenerateRequest, StopRules, check_prompt

MAX_STOPS = 16

Echo = str | tuple[int, ...]  # what a text begins with: text, or the text of token ids


@dataclass(frozen=True, slots=True)
class GenerationJob:
    """One completion that was checked and can run.

    decoder: makes text of tokens. keeps_stop: whether the stop string that ends the text is part of it.
    """

    card: ModelCard
    request: GenerateRequest
    stops: tuple[str, ...]
    decoder: TokenDecoder
    keeps_stop: bool = False
    echo: Echo = ""


def prepare(
    card: ModelCard,
    request_id: str,
    prompt_ids: tuple[int, ...],
    body: GenerationBody,
    seed: int,
    *,
    echo: Echo = "",
    marks: Sequence[str] = (),
    grammar: str = "",
) -> GenerationJob:
    """Checks a request and returns its job. marks: tokens that have text in any case. grammar: of the answer.

    Raises InvalidRequest or PromptTooLong.
    """
    _check_stops(body.stops)
    _check_drafting(card, body.drafting)
    eos = () if body.ignore_eos else card.eos_token_ids
    special = [card.control.special[stop] for stop in body.stops if stop in card.control.special]
    stop_ids = frozenset([*body.stop_token_ids, *special, *eos])  # a special token has no text, so match its id
    room = card.max_model_len - len(prompt_ids)
    default = max(1, min(room, body.default_max_tokens or room))
    rules = StopRules(default if body.limit is None else body.limit, stop_ids)
    logits = body.rules(stop_ids)
    check_rules(logits, card.vocab_size)
    asked = body.drafting, logits, body.num_logprobs
    tells = body.return_token_sources
    request = GenerateRequest(
        request_id,
        prompt_ids,
        body.sampling(seed),
        rules,
        *asked,
        grammar=grammar,
        priority=body.priority,
        tells_sources=tells,
        tells_prompt=bool(echo) and body.num_logprobs is not None,
    )
    try:
        check_prompt(request, card.max_model_len, card.vocab_size)
    except InvalidRequest as error:
        error.param = body.prompt_field
        raise
    if rules.max_tokens > room:
        raise PromptTooLong(
            f"max_tokens {rules.max_tokens} and a prompt of {len(prompt_ids)} tokens exceed the {card.max_model_len} "
            f"tokens of {card.id}; ask for {room} at most",
            "max_tokens",
        )
    decoder = _decoder(card, body, stop_ids, marks)
    return GenerationJob(card, request, body.stops, decoder, body.include_stop_str_in_output, echo)


def _decoder(card: ModelCard, body: GenerationBody, stop_ids: frozenset[int], marks: Sequence[str]) -> TokenDecoder:
    """Shows marks and the special tokens that the body asks for. One that ends the text is treated as a stop string."""
    special = card.control.special
    hidden = frozenset(special.values())
    if not body.skip_special_tokens:
        hidden = frozenset() if body.include_stop_str_in_output else hidden & stop_ids
    elif body.include_stop_str_in_output:
        hidden -= {special[stop] for stop in body.stops if stop in special}
    hidden -= {special[mark] for mark in marks if mark in special}
    return card.tokenizer if len(hidden) == len(special) else Shown(card.tokenizer, hidden)


def _check_stops(stops: tuple[str, ...]) -> None:
    if len(stops) > MAX_STOPS:
        raise InvalidRequest(f"{len(stops)} stop strings are too many; send {MAX_STOPS} at most", "stop")
    if "" in stops:
        raise InvalidRequest("an empty stop string would stop everything; leave it out", "stop")
    for stop in stops:
        check_text(stop, "stop")


def _check_drafting(card: ModelCard, drafting: Speculation | None) -> None:
    """Raises InvalidRequest for a length above the target's limit, or for an unknown depth if the exits are known.

    The length is limited because all rows of a round wait for the longest draft.
    """
    if drafting is None or not drafting.length:
        return
    if card.max_draft_length is not None and drafting.length > card.max_draft_length:
        limit = f"{card.max_draft_length}, the limit of {card.id}"
        raise InvalidRequest(f"speculation length {drafting.length} exceeds {limit}; send less", "speculation")
    if card.exits and drafting.depth not in card.exits:
        exits = ", ".join(map(str, card.exits))
        raise InvalidRequest(
            f"speculation depth {drafting.depth} is not an exit of the drafter of {card.id}; send one of {exits}",
            "speculation",
        )
