"""`draftpool check`: whether the checkpoints of a config fit together. `serve` runs the same checks first."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from api.chat import render
from cli.output import listed, say
from deployments.config import AppConfig, PoolConfig, TargetConfig, load_config
from deployments.config_speculation import AdaptiveSpeculation, Speculation
from deployments.models import translation_to
from deployments.policies import drafts_ahead, needed_exits
from deployments.process import check_pages, pool_positions, target_positions
from deployments.progress import loading
from drafters.manifest import Manifest, vocabulary_hash
from drafters.translation import Translation
from model.config import read_config
from model.files import resolve
from model.load import check_weights
from model.tokenizer import end_token_warning, load_tokenizer, tokens_beyond
from protocol.errors import ConfigError, InvalidRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML file")


def run(args: argparse.Namespace) -> int:
    config = load_config(args.config)
    say(*check_config(config), *summary(config))
    return 0


def check_config(config: AppConfig) -> list[str]:
    """Returns warnings. Raises ConfigError or UnsupportedModel for the first checkpoint that cannot be served."""
    for target in config.targets:
        with loading(target.path):
            check_target(target)
    if config.pool is not None:
        with loading(config.pool.path):
            manifest = check_pool(config.pool)
        for target in config.targets:
            if target.speculation is not None:
                check_drafting(target, target.speculation, config.pool, manifest)
    return [f"warning: {warning}" for target in config.targets for warning in warnings(target)]


def check_target(target: TargetConfig) -> None:
    directory = resolve(target.path)
    positions = read_config(directory).max_positions
    if target.max_model_len is not None and target.max_model_len > positions:
        raise ConfigError(
            f"max_model_len {target.max_model_len} of target {target.name} exceeds the {positions} positions "
            "of its checkpoint; lower it"
        )
    check_weights(directory)
    check_pages(f"target {target.name}", target, target_positions(target, directory))


def check_pool(pool: PoolConfig) -> Manifest:
    directory = resolve(pool.path)
    read_config(directory)
    manifest = Manifest.load(directory)
    if vocabulary_hash(directory) != manifest.vocabulary_hash:
        raise ConfigError(f"{directory}: the tokenizer is not the one its draftpool.json names; restore it")
    check_weights(directory)
    check_pages("pool", pool, pool_positions(pool, directory))
    return manifest


def check_drafting(target: TargetConfig, speculation: Speculation, pool: PoolConfig, manifest: Manifest) -> None:
    """Raises ConfigError if the pool cannot draft for the target as its config says."""
    drafts_ahead(target, apart=True, translates=translation_to(pool, target) is not None)  # may refuse
    if unknown := sorted(set(needed_exits(speculation)) - set(manifest.exits)):
        raise ConfigError(
            f"speculation of target {target.name} asks for depth {unknown[0]}; the drafter has the exits "
            f"{listed(manifest.exits)}"
        )


def warnings(target: TargetConfig) -> Iterator[str]:
    directory = resolve(target.path)
    yield from check_text(target.name, directory)
    held = target_positions(target, directory) // target.page_size * target.page_size
    wanted = target.max_model_len or read_config(directory).max_positions
    if held < wanted:
        yield (
            f"kv_mb {target.kv_mb} of target {target.name} holds {held} positions, fewer than the {wanted} of its "
            "max_model_len; longer requests are refused; raise kv_mb, or lower max_model_len"
        )


def check_text(name: str, directory: Path) -> Iterator[str]:
    """Yields warnings. Raises ConfigError for a tokenizer or a template that cannot work."""
    tokenizer, vocab_size = load_tokenizer(directory), read_config(directory).vocab_size
    rendered = render_sample(name, tokenizer)
    if warning := end_token_warning(directory, tokenizer):
        yield f"target {name}: {warning}"
    if beyond := tokens_beyond(vocab_size, tokenizer):
        yield (
            f"the tokenizer of target {name} has {len(beyond)} tokens beyond the {vocab_size} of the embedding "
            f"({', '.join(beyond[:3])}{', ...' if beyond[3:] else ''}); requests with them are refused"
        )
    if written := [token for token in beyond if token in rendered]:
        yield f"the chat template of target {name} writes {written[0]}, so every chat request is refused"


def render_sample(name: str, tokenizer: PreTrainedTokenizerFast) -> str:
    """The rendered prompt of a chat with one message; empty without a template."""
    if not tokenizer.chat_template:
        return ""
    try:
        return render(tokenizer, [{"role": "user", "content": "hello"}])
    except InvalidRequest as error:
        raise ConfigError(f"the chat template of target {name} does not work: {error}; fix it, or remove it") from None


def summary(config: AppConfig) -> Iterator[str]:
    manifest = Manifest.load(resolve(config.pool.path)) if config.pool else None
    apart = config.placement == "separate"
    found = {target.name: translation_to(config.pool, target) if config.pool else None for target in config.targets}
    for target in config.targets:
        decoder, how = read_config(resolve(target.path)), "no speculation"
        if target.speculation and manifest:
            told = drafts_ahead(target, apart=apart, translates=found[target.name] is not None)
            how = describe(target.speculation, told)
        yield f"target {target.name}: {decoder.family}, {decoder.num_layers} layers, {target.dtype}, {how}"
    if config.pool is not None and manifest:
        where = f"{config.pool.num_replicas} replicas" if apart else "colocated"
        yield f"pool: {where}, {config.pool.dtype}, exits {listed(manifest.exits)}"
        yield from translations(found)
    yield "ok"


def translations(found: Mapping[str, Translation | None]) -> Iterator[str]:
    """How much of its vocabulary a target shares with a drafter of another one. found: by target."""
    for name, own in found.items():
        if own is not None:
            shared = len(own.to_target) / len(own.to_drafter)
            yield f"target {name}: the drafter has another tokenizer, and {shared:.0%} of its tokens"


def describe(speculation: Speculation, ahead: bool) -> str:
    if isinstance(speculation, AdaptiveSpeculation):
        exits = f"exits {listed(speculation.exits)}" if speculation.exits else "any exit"
        how = f"{speculation.policy}, {exits}, length 0 to {speculation.length}"
        return f"{how}, in turn or ahead" if ahead else how
    how = f"depth {speculation.depth}, length {speculation.length}"
    return f"{how}, drafted ahead" if ahead else how
