"""The configuration of `draftpool train-drafter`. Unknown keys are refused, and errors say what to do.

Paths are relative to the folder of the YAML file.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from model.files import resolve
from protocol.errors import ConfigError


def _anchor(path: Path, info: ValidationInfo) -> Path:
    return (info.context or Path()) / path


def _checkpoint(path: Path) -> Path:
    """The folder of a checkpoint; a GGUF file is unpacked. What does not exist is left to those who read it."""
    return resolve(str(path)) if path.exists() else path


AnchoredPath = Annotated[Path, AfterValidator(_anchor)]
CheckpointPath = Annotated[AnchoredPath, AfterValidator(_checkpoint)]
Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0)]


class RecipeSection(BaseModel):
    """A part of the configuration that takes its own keys only."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FreshShape(RecipeSection):
    """The shape of a new Llama."""

    hidden_size: Positive
    intermediate_size: Positive
    num_attention_heads: Positive
    max_position_embeddings: Positive = 2048


class Base(RecipeSection):
    """What training starts from: the tokenizer of the checkpoint folder `checkpoint` and a model of `layers` layers.

    The model has the checkpoint's first layers, embeddings, final norm and LM head, or, with `fresh`, new weights. With
    `head_size`, its LM head has rows for the corpus's most frequent tokens only, and its embeddings are not trained.
    """

    checkpoint: CheckpointPath
    layers: Positive
    fresh: FreshShape | None = None
    head_size: Annotated[int, Field(ge=2)] | None = None


class Corpus(RecipeSection):
    """Text files, one document each, or .jsonl files with one document in `field` of each line."""

    files: list[AnchoredPath] = Field(min_length=1)
    field: str = "text"
    max_tokens: Positive | None = None


class OnPolicy(RecipeSection):
    """Continuations sampled from each target: `tokens` of them per target, in rows of `row_length`."""

    tokens: Positive = 500_000
    row_length: Positive = 384
    prompt_lengths: tuple[Positive, Positive] = (48, 192)
    temperatures: tuple[float, ...] = (0.0, 0.8)
    batch: Positive = 64

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.prompt_lengths[0] <= self.prompt_lengths[1] < self.row_length:
            raise ValueError(
                f"prompt_lengths {list(self.prompt_lengths)} must not decrease and must stay below "
                f"row_length, {self.row_length}"
            )
        return self


class Distillation(RecipeSection):
    """Weight of the KL term, log-probabilities kept per position, and corpus tokens that the targets judge.

    Without `corpus_tokens` the targets judge the whole corpus; with it, training sees that much of it only.
    """

    weight: Annotated[float, Field(ge=0)] = 1.0
    top_k: Annotated[int, Field(gt=0, le=1024)] = 24
    corpus_tokens: Positive | None = None


class TrainingSchedule(RecipeSection):
    """Length and speed of the run. A step sees `parts` batches of rows, each of about `part_tokens` tokens.

    `workers` threads compute the parts, and divide the cores among them. `optimiser` is that of hidden matrices: Muon
    needs fewer steps, AdamW less time for each where bf16 is slow.
    """

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
    optimiser: Literal["muon", "adamw"] = "muon"


class TrainDrafterConfig(RecipeSection):
    """Everything that `draftpool train-drafter` needs. `work` holds caches and checkpoints.

    `exit_weights` are the exits' shares of the loss, equal by default; only their ratios count.
    """

    output: AnchoredPath
    work: AnchoredPath
    base: Base
    exits: tuple[Positive, ...] = Field(min_length=1)
    exit_weights: tuple[Rate, ...] = ()
    corpus: Corpus
    targets: list[CheckpointPath] = []
    on_policy: OnPolicy | None = None
    distillation: Distillation = Field(default_factory=Distillation)
    schedule: TrainingSchedule
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "bfloat16"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if list(self.exits) != sorted(set(self.exits)):
            raise ValueError(f"exits {list(self.exits)} must increase: list each depth once, shallowest first")
        if self.exits[-1] != self.base.layers:
            raise ValueError(
                f"the last of exits is {self.exits[-1]}, but base has {self.base.layers} layers: "
                "end exits with the full depth, or give base fewer layers"
            )
        if self.exit_weights and len(self.exit_weights) != len(self.exits):
            raise ValueError(
                f"exit_weights has {len(self.exit_weights)} entries for {len(self.exits)} exits: give each one"
            )
        if self.on_policy is not None and not self.targets:
            raise ValueError("on_policy needs targets to sample from: list targets, or leave on_policy out")
        return self


def load_config(path: Path) -> TrainDrafterConfig:
    """The configuration in the YAML file `path`. Raises ConfigError."""
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    try:
        return TrainDrafterConfig.model_validate(values, context=path.resolve().parent)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(path, item) for item in error.errors())) from None


def _explain(path: Path, item: Any) -> str:
    key = ".".join(map(str, item["loc"])) or "(top level)"
    if item["type"] == "extra_forbidden":
        return f"{path}: unknown key {key}: remove it or check its spelling"
    if item["type"] == "missing":
        return f"{path}: {key} is missing: add it"
    return f"{path}: {key}: {item['msg'].removeprefix('Value error, ')} (given: {item['input']!r:.80})"
