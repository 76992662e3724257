"""What tests ask of the stand-ins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from bench.oracle import KnownText, OracleDrafter, Ranking
from model.decoder import Decoder
from protocol.draft import DraftClient, DraftRequest, DraftRow
from protocol.plan import DepthRule
from protocol.request import SamplingParams
from tests.drafters.clients import CASCADE, SAMPLED, TOKENS
from tests.reference.drafting import draft_from_scratch

VOCAB = 160


def row(sequence_id: int, tokens: Sequence[int], length: int, start: int = 0) -> DraftRow:
    return DraftRow(sequence_id, start, tuple(tokens[start:]), length, SamplingParams(temperature=0))


def asked(*rows: DraftRow, depth: DepthRule | None = None) -> DraftRequest:
    return DraftRequest("target", 1, depth or DepthRule((2,)), rows)


def oracle_of(tokens: Sequence[int], acceptance: dict[int, float], runner_up: float = 1.0) -> OracleDrafter:
    text = KnownText(tuple(tokens[:3]), SamplingParams(temperature=0), tuple(tokens[3:]))
    return OracleDrafter([text], Ranking(acceptance, runner_up, VOCAB))


class Oracles:
    """A `Connect` of the contract: every client an oracle that knows what the contract's drafter would draft."""

    def __init__(self, decoder: Decoder) -> None:
        prompts = [TOKENS, TOKENS[::-1]]
        drafts = [self.drafted(decoder, prompt, 40) for prompt in prompts]
        prompts += [[*TOKENS, *drafts[0][:2], 5], [*TOKENS, 9]]
        drafts += [self.drafted(decoder, prompt, 40) for prompt in prompts[2:]]
        pairs = zip(prompts, drafts, strict=True)
        self.texts = [KnownText(tuple(prompt), SAMPLED, tuple(draft)) for prompt, draft in pairs]
        self.clients: list[OracleDrafter] = []

    @staticmethod
    def drafted(decoder: Decoder, prompt: list[int], length: int) -> list[int]:
        steps = draft_from_scratch(decoder, prompt, length, CASCADE, SAMPLED)
        return [token for token, _, _ in steps]

    @contextmanager
    def __call__(self, worker: object, incarnation: str, deadline_s: float) -> Iterator[DraftClient]:
        ranking = Ranking(dict.fromkeys(CASCADE.exits, 1.0), runner_up=0, vocab_size=VOCAB)
        self.clients.append(OracleDrafter(self.texts, ranking, max_rows=4))
        yield self.clients[-1]

    def stats(self) -> Any:
        return self

    @property
    def num_sequences(self) -> int:
        return sum(client.num_open for client in self.clients)

    num_pages = 0  # of which it has none to give back

    @property
    def num_free_pages(self) -> int:
        return -self.num_sequences
