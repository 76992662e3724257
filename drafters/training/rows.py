"""The rows that a drafter is trained on, and which of them each step sees.

The parts of a step are divided between corpus text and the targets' own continuations in a fixed proportion, and
each kind is gone through epoch by epoch, so that a step number alone says which rows belong to it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from drafters.training.config import TrainDrafterConfig
from drafters.training.data import Chunk, TokenRows, cached_chunks
from drafters.training.distil import judge, load_teacher, sampler
from drafters.training.stream import Tokens

CHUNK_ROWS = 64


@dataclass(frozen=True)
class BatchPart:
    """A share of a step's batch: tokens [row, position], teachers' ids and log-probs [teacher, row, position, k]."""

    tokens: Tensor
    ids: Tensor
    logp: Tensor


def corpus_rows(config: TrainDrafterConfig, stream: Tokens) -> TokenRows:
    """The corpus in rows of `sequence_length`, judged by all targets."""
    length = config.schedule.sequence_length
    rows = TokenRows.without_teachers(stream, length)
    if not config.targets or config.distillation.weight == 0:
        return rows
    teachers = [load_teacher(target) for target in config.targets]
    chosen = rows.tokens[np.random.default_rng(config.seed).permutation(len(rows.tokens))]
    chosen = chosen[: max(1, (config.distillation.corpus_tokens or chosen.size) // length)]
    k = config.distillation.top_k

    def make(index: int) -> Chunk:
        return judge(teachers, chosen[index * CHUNK_ROWS : (index + 1) * CHUNK_ROWS], k)

    settings = (config.corpus, [str(target) for target in config.targets], chosen.shape, k, config.seed)
    chunks = -(-len(chosen) // CHUNK_ROWS)
    workers = config.schedule.workers
    return cached_chunks(config.work / "corpus", settings, chunks, make, workers, config.pause)


def on_policy_rows(config: TrainDrafterConfig, stream: Tokens) -> list[TokenRows]:
    """For each target, rows of its own continuations of prompts from the corpus, judged by itself."""
    options = config.on_policy
    if options is None:
        return []
    k, found = config.distillation.top_k, []
    for index, target in enumerate(config.targets):
        make = sampler(load_teacher(target), stream, options, k, config.seed + index)
        chunks = max(1, options.tokens // (options.batch * options.row_length))
        settings = (config.corpus, options.model_copy(update={"tokens": 1}), str(target), k, config.seed)
        place = config.work / f"on-policy-{target.name}"
        found.append(cached_chunks(place, settings, chunks, make, config.schedule.workers, config.pause))
    return found


@dataclass(frozen=True)
class Mixture:
    """Corpus rows and on-policy rows, and how the parts of a step are divided between them."""

    corpus: TokenRows
    on_policy: list[TokenRows]
    parts: int
    on_policy_parts: int
    part_tokens: int
    seed: int

    def step(self, step: int) -> list[BatchPart]:
        """The parts of `step`, corpus first."""
        corpus_parts = self.parts - self.on_policy_parts
        found = [self._part(self.corpus, step * corpus_parts + part) for part in range(corpus_parts)]
        for part in range(self.on_policy_parts):
            turn, target = divmod(step * self.on_policy_parts + part, len(self.on_policy))
            found.append(self._part(self.on_policy[target], turn))
        return found

    def _part(self, rows: TokenRows, turn: int) -> BatchPart:
        count, length = rows.tokens.shape
        size = min(count, max(1, self.part_tokens // length))
        epoch, place = divmod(turn, count // size)
        order = np.random.default_rng((self.seed, epoch)).permutation(count)
        chosen = order[place * size : (place + 1) * size]
        return BatchPart(
            torch.from_numpy(rows.tokens[chosen].astype(np.int64)),
            torch.from_numpy(rows.ids[:, chosen]),
            torch.from_numpy(rows.logp[:, chosen]),
        )


def prepare_mixture(config: TrainDrafterConfig, stream: Tokens) -> Mixture:
    """All rows of `config`, from the cache where they are there."""
    corpus, on_policy = corpus_rows(config, stream), on_policy_rows(config, stream)
    schedule = config.schedule
    on_policy_parts = round(schedule.on_policy_share * schedule.parts) if on_policy else 0
    return Mixture(corpus, on_policy, schedule.parts, on_policy_parts, schedule.part_tokens, config.seed)
