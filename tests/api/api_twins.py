"""What the API tests run against: a tiny tokenizer, and two backends, one scripted and one with a real engine."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from api.backend import ModelCard, Starting, max_token_bytes
from api.control import ControlTokens
from api.open_requests import OpenRequests
from api.rendering import Renderer
from api.trace import Slice, Track
from drafters.client import LocalDraftClient
from drafters.limits import PoolLimits
from drafters.nested import NestedDrafter
from drafters.worker import DraftWorker
from link.counts import told
from model.load import load_decoder
from model.vocabulary import Spellings
from protocol.request import FinishReason, GenerateRequest, SequenceStats, TokenRun
from protocol.stats import Runs
from router.policy import Fixed, Off
from targets.engine import Engine, EngineConfig
from targets.grammar import Grammars
from targets.model import load_target

CHAT_TEMPLATE = (
    "{% for message in messages %}<|bos|>{{ message['role'] }}: {{ message['content'] }}<|eos|>{% endfor %}"
    "{% if add_generation_prompt %}<|bos|>assistant: {% endif %}"
)
CORPUS = ["def add(a, b):\n    return a + b\n", "grüße aus köln, naïve café 日本語 テスト 🙂🙃", "import os, sys"]


def byte_level(corpus: Sequence[str], vocab_size: int, special: Sequence[str] = ()) -> Tokenizer:
    """Byte-level BPE with few merges, so that characters beyond ASCII often take several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


@cache
def tiny_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """320 entries."""
    names = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level(CORPUS, 320, list(names.values())), **names)
    tokenizer.chat_template = chat_template
    return tokenizer


@cache
def renderer() -> Renderer:
    """One for all: each has a process."""
    return Renderer()


def card(name: str = "tiny", max_model_len: int = 64, chat_template: str | None = CHAT_TEMPLATE) -> ModelCard:
    tokenizer = tiny_tokenizer(chat_template)
    return ModelCard(
        name,
        max_model_len,
        len(tokenizer),
        tokenizer,
        ControlTokens(tokenizer),
        max_token_bytes(tokenizer),
        (tokenizer.eos_token_id,),
        1_700_000_000,
        max_batch=4,
        renderer=renderer(),
        spellings=Spellings(tokenizer),
    )


Script = Callable[[GenerateRequest], Sequence[TokenRun | Exception | asyncio.Event]]


def runs_of(
    request: GenerateRequest,
    *runs: Sequence[int],
    reason: FinishReason = FinishReason.STOP,
    stats: SequenceStats | None = None,
) -> list[TokenRun]:
    """One TokenRun for each list of tokens, the last with the reason."""
    made, index = [], 0
    for number, tokens in enumerate(runs):
        last = number == len(runs) - 1
        stats_here = (stats or SequenceStats(len(runs) - 1, 8, 3)) if last else None
        made.append(TokenRun(request.request_id, index, tuple(tokens), reason if last else None, stats_here))
        index += len(tokens)
    return made


def run(index: int, *tokens: int, last: bool = False) -> TokenRun:
    """A run of the request r."""
    return TokenRun("r", index, tokens, FinishReason.LENGTH if last else None)


def says(text: str, size: int = 3) -> Script:
    """A script that answers every request with this text, a few tokens a round."""
    ids = tiny_tokenizer().encode(text, add_special_tokens=False)
    return lambda request: runs_of(request, *(ids[at : at + size] for at in range(0, len(ids), size)))


class Twin(ABC):
    """A backend without Ray. away: targets that are not up. starts: how far those are that start."""

    cards: Sequence[ModelCard]
    away: Sequence[str] = ()
    starts: Mapping[str, Starting] = MappingProxyType({})
    num_open: int = 0
    open: OpenRequests

    @property
    def names(self) -> Sequence[str]:
        return [card.id for card in self.cards]

    async def card(self, model: str) -> ModelCard | None:
        return None if model in self.away else next(card for card in self.cards if card.id == model)

    async def ready(self, model: str) -> bool:
        return model not in self.away

    async def starting(self, model: str) -> Starting:
        return self.starts.get(model, Starting())

    async def stats(self) -> Mapping[str, Any]:
        return {"targets": {card.id: [{"num_running": self.num_open}] for card in self.cards}, "pool": []}

    async def router(self) -> Mapping[str, Any]:
        return {card.id: [{"policy": "off"}] for card in self.cards}

    async def token_counts(self) -> Mapping[str, Any]:
        return {card.id: {"vocabulary_hash": "abc", "counts": {5: 2}} for card in self.cards}

    async def trace(self, num_rounds: int) -> tuple[Sequence[Track], Sequence[Track]]:
        part = Slice("plan", 3.0, 3.5, {})
        return [Track(card.id, (part,) * num_rounds) for card in self.cards], [Track("pool", (part,))]

    def generate(self, model: str, request: GenerateRequest) -> AsyncGenerator[TokenRun, None]:
        return self.open.watch(request.request_id, self.runs(request))

    @abstractmethod
    def runs(self, request: GenerateRequest) -> AsyncGenerator[TokenRun, None]: ...

    async def complete(self, model: str, request: GenerateRequest) -> TokenRun:
        async with aclosing(self.generate(model, request)) as runs:
            parts = [run async for run in runs]
        joined = {name: tuple(each for part in parts for each in getattr(part, name)) for name in TOLD_BY_TOKEN}
        return replace(parts[-1], index=0, of_prompt=parts[0].of_prompt, **joined)


TOLD_BY_TOKEN = ("token_ids", "logprobs", "sources")


@dataclass
class ScriptedBackend(Twin):
    """Plays a script per request: runs are yielded, errors raised, events waited for."""

    script: Script
    cards: Sequence[ModelCard] = field(default_factory=lambda: (card(),))
    requests: list[GenerateRequest] = field(default_factory=list)
    num_open: int = 0
    away: Sequence[str] = ()
    open: OpenRequests = field(default_factory=OpenRequests)

    async def runs(self, request: GenerateRequest) -> AsyncGenerator[TokenRun, None]:
        self.requests.append(request)
        self.num_open += 1
        try:
            for step in self.script(request):
                await asyncio.sleep(0)
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, asyncio.Event):
                    await step.wait()
                else:
                    yield step
        finally:
            self.num_open -= 1


class EngineBackend(Twin):
    """A real engine in this process; what a target replica and the ingress do between them, without Ray."""

    def __init__(self, engine: Engine, model_card: ModelCard, worker: DraftWorker | None = None) -> None:
        """worker: that drafts for the engine."""
        self.engine = engine
        self.cards = (model_card,)
        self.worker = worker
        self.open = OpenRequests()

    async def stats(self) -> Mapping[str, Any]:
        target = told(self.engine.stats(), Runs("torch, cpu")) | {"replica": "target-0"}
        pool = [asdict(self.worker.stats()) | {"replica": "pool-0"}] if self.worker else []
        return {"targets": {self.cards[0].id: [target]}, "pool": pool}

    async def runs(self, request: GenerateRequest) -> AsyncGenerator[TokenRun, None]:
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[TokenRun] = asyncio.Queue()
        self.engine.submit(request, lambda run: loop.call_soon_threadsafe(arrived.put_nowait, run))
        try:
            run = await arrived.get()
            while run.finish_reason is None:
                yield run
                run = await arrived.get()
            yield run
        finally:
            self.engine.cancel(request.request_id)


def save_tiny(directory: Path) -> None:
    """A random two-layer Llama with the tiny tokenizer's vocabulary."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(11)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.4,
    )
    LlamaForCausalLM(config).save_pretrained(directory)


def grammars(tokenizer: PreTrainedTokenizerFast) -> Grammars:
    return Grammars(tokenizer.backend_tokenizer.to_str(), len(tokenizer), [tokenizer.eos_token_id])


def make_engine(directory: Path, max_batch: int = 4, max_queue: int = 4) -> Engine:
    """A started plain engine over the tiny Llama."""
    save_tiny(directory)
    model = load_target(directory, dtype=torch.float32, num_positions=4096, page_size=16)
    model = replace(model, grammars=grammars(tiny_tokenizer()))
    engine = Engine(model, Off(), None, EngineConfig(max_batch=max_batch, max_queue=max_queue))
    engine.start()
    return engine


def make_drafting_engine(
    directory: Path, tokenizer: PreTrainedTokenizerFast | None = None
) -> tuple[Engine, DraftWorker]:
    """A started engine over the tiny Llama, and the worker that drafts three tokens a round with its first layer.

    tokenizer: another of as many entries.
    """
    save_tiny(directory)
    model = load_target(directory, dtype=torch.float32, num_positions=4096, page_size=16)
    model = replace(model, grammars=grammars(tokenizer or tiny_tokenizer()))
    drafter = NestedDrafter(load_decoder(directory, dtype=torch.float32), (1, 2), num_pages=256, page_size=16)
    worker = DraftWorker(drafter, PoolLimits(), time.monotonic)
    engine = Engine(model, Fixed(1, 3), LocalDraftClient(worker, "engine"), EngineConfig(max_batch=4))
    engine.start()
    return engine, worker
