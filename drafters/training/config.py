"""The configuration of `draftpool train-drafter`: typed, closed, and with errors that say what to do.

Paths are relative to the folder of the YAML file.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from model.files import resolve
from protocol.errors import ConfigError

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0)]


class RecipeSection(BaseModel):
    """A part of the configuration that takes its own keys only."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FreshBase(RecipeSection):
    """A new Llama of this shape, over the tokenizer in `tokenizer` (a checkpoint folder)."""

    tokenizer: Path
    hidden_size: Positive
    intermediate_size: Positive
    num_hidden_layers: Positive
    num_attention_heads: Positive
    max_position_embeddings: Positive = 2048


class CheckpointBase(RecipeSection):
    """The first `layers` layers of a HF checkpoint, with its embeddings, final norm and LM head."""

    checkpoint: Path
    layers: Positive


def _kind(base: Any) -> str:
    has = "checkpoint" in base if isinstance(base, dict) else isinstance(base, CheckpointBase)
    return "first layers" if has else "fresh"


Base = Annotated[
    Annotated[FreshBase, Tag("fresh")] | Annotated[CheckpointBase, Tag("first layers")], Discriminator(_kind)
]


class Corpus(RecipeSection):
    """Text files, one document each, or .jsonl files with one document in `field` of each line."""

    files: list[str] = Field(min_length=1)
    field: str = "text"
    max_tokens: Positive | None = None


class OnPolicy(RecipeSection):
    """Continuations sampled from each target: `tokens` of them per target, in rows of `row_length`."""

    tokens: Positive = 500_000
    row_length: Positive = 384
    prompt_lengths: tuple[Positive, Positive] = (48, 192)
    temperatures: tuple[float, ...] = (0.0, 0.8)
    batch: Positive = 64


class Distillation(RecipeSection):
    """Weight of the KL term, log-probabilities kept per position, and corpus tokens that the targets judge.

    Without `corpus_tokens` the targets judge all of the corpus; with it, training sees that much of it only.
    """

    weight: Annotated[float, Field(ge=0)] = 1.0
    top_k: Annotated[int, Field(gt=0, le=1024)] = 24
    corpus_tokens: Positive | None = None


class TrainingSchedule(RecipeSection):
    """Length and speed of the run. A step sees `parts` batches of rows, each of about `part_tokens` tokens."""

    steps: Positive
    parts: Positive = 4
    part_tokens: Positive = 2048
    sequence_length: Positive = 512
    on_policy_share: Share = 0.5
    warm_up: Share = 0.05
    matrix_learning_rate: Rate = 0.02
    learning_rate: Rate = 0.003
    weight_decay: Share = 0.0
    workers: Positive = 1


class TrainDrafterConfig(RecipeSection):
    """Everything that `draftpool train-drafter` needs.

    `work` holds caches and checkpoints; while the file `pause` exists, the run waits.
    """

    output: Path
    work: Path
    pause: Path | None = None
    base: Base
    exits: tuple[Positive, ...] = Field(min_length=1)
    corpus: Corpus
    targets: list[Path] = []
    on_policy: OnPolicy | None = None
    distillation: Distillation = Field(default_factory=Distillation)
    schedule: TrainingSchedule
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "bfloat16"

    @property
    def depth(self) -> int:
        return self.base.layers if isinstance(self.base, CheckpointBase) else self.base.num_hidden_layers

    @model_validator(mode="after")
    def _check(self) -> Self:
        if list(self.exits) != sorted(set(self.exits)):
            raise ValueError(f"exits {list(self.exits)} must increase: list each depth once, shallowest first")
        if self.exits[-1] != self.depth:
            raise ValueError(
                f"the last of exits is {self.exits[-1]}, but base has {self.depth} layers: "
                "end exits with the full depth, or give base fewer layers"
            )
        if self.on_policy is not None and not self.targets:
            raise ValueError("on_policy needs targets to sample from: list targets, or leave on_policy out")
        return self


def load_config(path: Path) -> TrainDrafterConfig:
    """The configuration in the YAML file `path`, with its paths made absolute."""
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    try:
        return _anchor(TrainDrafterConfig.model_validate(values), path.resolve().parent)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(path, item) for item in error.errors())) from None


def _anchor(config: TrainDrafterConfig, folder: Path) -> TrainDrafterConfig:
    base = config.base
    if isinstance(base, CheckpointBase):
        base = base.model_copy(update={"checkpoint": _checkpoint(folder / base.checkpoint)})
    else:
        base = base.model_copy(update={"tokenizer": _checkpoint(folder / base.tokenizer)})
    files = [str(folder / pattern) for pattern in config.corpus.files]
    return config.model_copy(
        update={
            "base": base,
            "output": folder / config.output,
            "work": folder / config.work,
            "pause": config.pause and folder / config.pause,
            "targets": [_checkpoint(folder / target) for target in config.targets],
            "corpus": config.corpus.model_copy(update={"files": files}),
        }
    )


def _checkpoint(path: Path) -> Path:
    """The folder of a checkpoint; a GGUF file is unpacked. What does not exist is left to those who read it."""
    return resolve(str(path)) if path.exists() else path


def _explain(path: Path, item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"] if part not in ("fresh", "first layers")) or "(top level)"
    if item["type"] == "extra_forbidden":
        return f"{path}: unknown key {key}: remove it or check its spelling"
    if item["type"] == "missing":
        return f"{path}: {key} is missing: add it"
    return f"{path}: {key}: {item['msg'].removeprefix('Value error, ')} (given: {item['input']!r:.80})"
