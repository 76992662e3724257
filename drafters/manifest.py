"""What a drafter says about itself: its exits, its vocabulary, and the targets it was trained for.

The manifest is `draftpool.json` beside the weights. A checkpoint without one is a drafter all the same, with a
single exit at its full depth, so that any HF checkpoint can be used as a draft model.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from protocol.errors import ConfigError

NAME = "draftpool.json"


@dataclass(frozen=True)
class Manifest:
    """Exits in layers, shallowest first; the hash of the vocabulary; names of the targets distilled from."""

    exits: tuple[int, ...]
    vocabulary_hash: str
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.exits or list(self.exits) != sorted(set(self.exits)) or self.exits[0] < 1:
            raise ValueError(f"exits must be increasing depths of at least 1, not {list(self.exits)}")

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """The manifest of the drafter in `folder`, checked against the depth in its config.json."""
        depth = _depth(folder)
        path = folder / NAME
        if not path.exists():
            return cls((depth,), vocabulary_hash(folder))
        manifest = _parse(_read_json(path), path)
        if manifest.exits[-1] > depth:
            raise ConfigError(f"{path}: exit {manifest.exits[-1]} is deeper than the model's {depth} layers")
        return manifest

    def save(self, folder: Path) -> None:
        """Writes draftpool.json into `folder`."""
        (folder / NAME).write_text(json.dumps(asdict(self), indent=2) + "\n")


def drafter_exits(folder: Path) -> tuple[int, ...]:
    """Where the drafter in `folder` can stop. Unlike its manifest, this needs no tokenizer beside the weights."""
    return Manifest.load(folder).exits if (folder / NAME).exists() else (_depth(folder),)


def vocabulary_hash(folder: Path) -> str:
    """sha256 (hex) over the sorted (token, id) pairs of tokenizer.json, added tokens included.

    Equal hashes mean that a token id stands for the same text in both models.
    """
    path = folder / "tokenizer.json"
    tokenizer = _read_json(path)
    vocabulary = tokenizer.get("model", {}).get("vocab")
    if isinstance(vocabulary, list):
        vocabulary = {entry[0]: index for index, entry in enumerate(vocabulary)}
    if not isinstance(vocabulary, dict):
        raise ConfigError(f"{path}: no model.vocab in it, so that vocabularies cannot be compared")
    added = {entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens", [])}
    pairs = sorted({**vocabulary, **added}.items())
    return hashlib.sha256(json.dumps(pairs, separators=(",", ":")).encode()).hexdigest()


def check_vocabulary(target: Path, drafter: Path) -> None:
    """Raises ConfigError unless both directories hold the same vocabulary."""
    try:
        same = vocabulary_hash(target) == vocabulary_hash(drafter)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not same:
        raise ConfigError(f"{drafter} and {target} have different vocabularies; a drafter must share its target's")


def _parse(values: Any, path: Path) -> Manifest:
    if not isinstance(values, dict) or set(values) - {"exits", "vocabulary_hash", "targets"}:
        raise ConfigError(f"{path}: expected the keys exits, vocabulary_hash and targets only")
    exits, digest, targets = (values.get(key) for key in ("exits", "vocabulary_hash", "targets"))
    if not isinstance(exits, list) or not all(type(exit_) is int for exit_ in exits):
        raise ConfigError(f"{path}: exits must be a list of whole numbers of layers, not {exits!r}")
    if not isinstance(digest, str):
        raise ConfigError(f"{path}: vocabulary_hash must be a string, not {digest!r}")
    targets = [] if targets is None else targets
    if not isinstance(targets, list) or not all(isinstance(name, str) for name in targets):
        raise ConfigError(f"{path}: targets must be a list of names, not {targets!r}")
    try:
        return Manifest(tuple(exits), digest, tuple(targets))
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None


def _depth(folder: Path) -> int:
    config = _read_json(folder / "config.json")
    depth = config.get("num_hidden_layers", config.get("text_config", {}).get("num_hidden_layers"))
    if type(depth) is not int or depth < 1:
        raise ConfigError(f"{folder / 'config.json'}: num_hidden_layers must be a whole number, not {depth!r}")
    return depth


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing: a HF checkpoint directory is expected there") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
