"""The rows that a drafter is trained on, and which of them each step sees.

The parts of a step are divided between corpus text and the targets' own continuations in a fixed proportion, and
each kind is gone through epoch by epoch, so that a step number alone says which rows belong to it.
"""

from dataclasses import dataclass

import numpy as np

from drafters.training.config import OnPolicy, TrainDrafterConfig, TrainingSchedule
from drafters.training.data import TokenRows, Tokens, cached_rows
from drafters.training.distil import continue_prompts, judge, load_teacher
from model.decoder import Decoder
from protocol.request import SamplingParams

CHUNK_ROWS = 64


def corpus_rows(config: TrainDrafterConfig, stream: Tokens) -> TokenRows:
    """The corpus in rows of `sequence_length`, judged by all targets."""
    length, k = config.schedule.sequence_length, config.distillation.top_k
    rows = TokenRows.without_teachers(stream, length)
    if not config.targets or config.distillation.weight == 0:
        return rows
    teachers = [load_teacher(target) for target in config.targets]
    tokens = np.random.default_rng(config.seed).permutation(rows.tokens)
    tokens = tokens[: max(1, (config.distillation.corpus_tokens or tokens.size) // length)]
    starts = range(0, len(tokens), CHUNK_ROWS)
    settings = (config.corpus, config.targets, tokens.shape, k, config.seed)
    return cached_rows(
        config.work / "corpus",
        settings,
        len(starts),
        lambda index: judge(teachers, tokens[starts[index] : starts[index] + CHUNK_ROWS], k),
    )


def on_policy_rows(config: TrainDrafterConfig, stream: Tokens) -> list[TokenRows]:
    """For each target, rows of its own continuations of prompts from the corpus, judged by itself."""
    options, k = config.on_policy, config.distillation.top_k
    if options is None:
        return []
    count = max(1, options.tokens // (options.batch * options.row_length))
    rows_by_target = []
    for index, path in enumerate(config.targets):
        target, seed = load_teacher(path), config.seed + index

        def make(chunk: int, target: Decoder = target, seed: int = seed) -> TokenRows:
            return judge([target], sample_rows(target, stream, options, seed, chunk), k)

        settings = (config.corpus, options.model_copy(update={"tokens": 1}), path, k, config.seed)
        rows_by_target.append(cached_rows(config.work / f"on-policy-{path.name}", settings, count, make))
    return rows_by_target


def sample_rows(target: Decoder, stream: Tokens, options: OnPolicy, seed: int, chunk: int) -> Tokens:
    """Rows [batch, row_length] that begin with prompts from `stream`, which the target continues.

    The number of the chunk chooses the temperature.
    """
    rng = np.random.default_rng((seed, chunk))
    shortest, longest = options.prompt_lengths
    prompts = []
    for size in rng.integers(shortest, longest + 1, options.batch).tolist():
        start = int(rng.integers(max(1, len(stream) - size)))
        prompts.append(stream[start : start + size].tolist())
    temperature = options.temperatures[chunk % len(options.temperatures)]
    seeds = rng.integers(1 << 63, size=options.batch).tolist()
    sampling = [SamplingParams(temperature=temperature, seed=row_seed) for row_seed in seeds]
    return np.array(continue_prompts(target, prompts, [options.row_length] * options.batch, sampling), np.uint32)


@dataclass(frozen=True)
class Mixture:
    """Corpus rows and on-policy rows, and how the parts of a step are divided between them."""

    corpus: TokenRows
    on_policy: list[TokenRows]
    schedule: TrainingSchedule
    seed: int

    def step(self, step: int) -> list[TokenRows]:
        """The parts of `step`, corpus first."""
        parts = self.schedule.parts
        num_on_policy = round(self.schedule.on_policy_share * parts) if self.on_policy else 0
        num_corpus = parts - num_on_policy
        chosen = [self._part(self.corpus, step * num_corpus + part) for part in range(num_corpus)]
        for part in range(num_on_policy):
            turn, target = divmod(step * num_on_policy + part, len(self.on_policy))
            chosen.append(self._part(self.on_policy[target], turn))
        return chosen

    def _part(self, rows: TokenRows, turn: int) -> TokenRows:
        count, length = rows.tokens.shape
        size = min(count, max(1, self.schedule.part_tokens // length))
        epoch, place = divmod(turn, count // size)
        order = np.random.default_rng((self.seed, epoch)).permutation(count)
        chosen = order[place * size : (place + 1) * size]
        return TokenRows(rows.tokens[chosen], rows.ids[:, chosen], rows.logp[:, chosen])
