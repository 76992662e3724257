"""Streams learn what the drafter itself will pick, and leave it as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from drafters.manifest import Manifest
from drafters.nested import load_nested
from drafters.training.base import build_model
from drafters.training.config import TrainDrafterConfig
from drafters.training.data import read_stream
from drafters.training.exits import exit_logits
from drafters.training.loop import train
from drafters.training.rows import prepare_mixture
from drafters.training.streams import Body, StreamHeads, stream_losses, train_streams
from protocol.errors import ConfigError
from tests.drafters.training.conftest import parse

STREAMS = {"count": 2, "steps": 4, "width": 24}


@pytest.fixture
def alone(values: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    """Trains the streams of a finished drafter, which is that checkpoint."""
    values["base"] = {"checkpoint": str(checkpoint), "layers": 4}
    values["exits"] = [4]
    values["schedule"]["steps"] = 0
    return {**values, "streams": dict(STREAMS)}


def streams(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "streams.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first | second)


def trained(config: TrainDrafterConfig, steps: int | None = None) -> tuple[dict[str, float], dict[str, float]]:
    """Losses before and after."""
    model = build_model(config)
    mixture = prepare_mixture(config, read_stream(config.corpus, Path(config.base.checkpoint)))  # type: ignore[union-attr]
    tokens = mixture.step(0)[0].tokens
    heads, _ = train_streams(model, config, mixture, progress=False, stop_after=steps)
    assert config.streams is not None
    new = StreamHeads(config.exits, model.config.hidden_size, config.streams, config.seed)
    body = Body(build_model(config))
    return tuple(  # type: ignore[return-value]
        {name: loss.item() for name, loss in stream_losses(body, own, config, tokens).items()} for own in (new, heads)
    )


def test_training_brings_every_stream_nearer_to_what_its_exit_picks_later(
    alone: dict[str, Any], tmp_path: Path
) -> None:
    alone["streams"]["steps"] = 100
    before, after = trained(parse(alone, tmp_path))
    assert before.keys() == {"4.1", "4.2"}
    assert all(after[name] < 0.7 * before[name] for name in before)


def test_a_new_head_guesses_the_pick_once_more(alone: dict[str, Any], tmp_path: Path) -> None:
    config = parse(alone, tmp_path)
    model = build_model(config)
    tokens = torch.arange(24).view(2, 12) % model.config.vocab_size
    (logits,) = exit_logits(model, tokens, config.exits, torch.float32)
    assert config.streams is not None
    heads = StreamHeads(config.exits, model.config.hidden_size, config.streams, 0)
    losses = stream_losses(Body(model), heads, config, tokens)
    told = logits.log_softmax(-1)
    for stream in (1, 2):
        later, now = told[:, stream:], told[:, :-stream]
        expected = (later.exp() * (later - now)).sum(-1).mean()
        torch.testing.assert_close(losses[f"4.{stream}"], expected, rtol=1e-3, atol=1e-3)


def test_the_drafter_that_streams_are_added_to_stays_as_it_is_to_the_byte(
    alone: dict[str, Any], tmp_path: Path, checkpoint: Path
) -> None:
    folder = train(parse(alone, tmp_path), progress=False)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (folder / name).read_bytes() == (checkpoint / name).read_bytes()
    assert Manifest.load(folder) == Manifest((4,), Manifest.load(checkpoint).vocabulary_hash, streams=2)
    assert not (checkpoint / "streams.safetensors").exists()
    drafter = load_nested(folder, dtype=torch.float32, num_positions=64, page_size=16)
    assert drafter.streams.most == 2


def test_streams_can_be_added_in_the_drafters_own_folder(alone: dict[str, Any], tmp_path: Path) -> None:
    first = train(parse(alone, tmp_path), progress=False)
    before = (first / "model.safetensors").read_bytes()
    alone["base"]["checkpoint"] = str(first)
    alone["streams"]["count"] = 1
    assert train(parse(alone, tmp_path), progress=False) == first
    assert (first / "model.safetensors").read_bytes() == before
    assert Manifest.load(first).streams == 1


def test_two_steps_of_streams_and_two_more_are_four_steps(alone: dict[str, Any], tmp_path: Path) -> None:
    whole = streams(train(parse(alone, tmp_path), progress=False))
    alone["work"] = "elsewhere"
    config = parse(alone, tmp_path)
    half = streams(train(config, progress=False, stop_after=2))
    assert not same(whole, half)
    assert same(whole, streams(train(config, progress=False)))


def test_a_drafter_and_its_streams_are_trained_in_turn_and_streams_wait_for_a_finished_drafter(
    values: dict[str, Any], tmp_path: Path
) -> None:
    plain = load_file(train(parse(values, tmp_path), progress=False) / "model.safetensors")
    values["output"], values["work"], values["streams"] = "both", "elsewhere", STREAMS
    config = parse(values, tmp_path)
    unfinished = train(config, progress=False, stop_after=2)
    assert Manifest.load(unfinished).streams == 0
    folder = train(config, progress=False)
    assert same(plain, load_file(folder / "model.safetensors"))
    assert Manifest.load(folder).streams == 2
    assert len(streams(folder)) == 2 * 2 * 2


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("streams", None, r"schedule\.steps is 0, which trains streams alone: give streams"),
        ("streams", {**STREAMS, "count": 0}, r"streams\.count"),
        ("streams", {**STREAMS, "count": 5}, r"streams\.count"),
        ("streams", {**STREAMS, "steps": 0}, r"streams\.steps"),
        ("streams", {**STREAMS, "heads": 2}, r"unknown key streams\.heads"),
        ("streams", {"count": 2}, r"streams\.steps is missing"),
    ],
)
def test_bad_options_are_refused_by_name(
    alone: dict[str, Any], tmp_path: Path, key: str, value: object, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        parse({**alone, key: value}, tmp_path)


def test_a_checkpoint_that_would_not_stay_as_it_is_is_refused(alone: dict[str, Any], tmp_path: Path) -> None:
    alone["base"]["layers"], alone["exits"] = 2, [2]
    with pytest.raises(ConfigError, match=r"base\.layers is 2, but schedule\.steps 0 keeps all 4"):
        train(parse(alone, tmp_path), progress=False)


def test_exits_that_the_drafter_does_not_have_are_refused(alone: dict[str, Any], tmp_path: Path) -> None:
    alone["exits"] = [2, 4]
    with pytest.raises(ConfigError, match=r"exits are \[2, 4\], but those of .* are \[4\]"):
        train(parse(alone, tmp_path), progress=False)


def test_the_demo_recipe_for_streams_is_valid() -> None:
    from drafters.training.config import load_config

    config = load_config(Path(__file__).parents[3] / "demo" / "streams.yaml")
    assert config.schedule.steps == 0
