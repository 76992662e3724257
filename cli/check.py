"""`draftpool check`, and what `serve` checks before it starts anything: do the checkpoints of a config fit together?"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from cli.check_text import check_text
from deployments.config import (
    AppConfig,
    EmaSpeculation,
    GoodputSpeculation,
    Mirror,
    PoolConfig,
    Speculation,
    TableSpeculation,
    TargetConfig,
    load_config,
)
from deployments.policies import needed_exits
from deployments.process import check_pages, pool_positions, target_positions
from drafters.manifest import Manifest, vocabulary_hash
from model.config import read_config
from model.files import resolve
from model.load import check_weights
from protocol.errors import ConfigError

T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML file")


def run(args: argparse.Namespace) -> int:
    config = load_config(args.config)
    for line in [*check_config(config), *summary(config)]:
        Console().print(line, highlight=False, soft_wrap=True)
    return 0


def check_config(config: AppConfig) -> list[str]:
    """Warnings. Raises ConfigError or UnsupportedModel for the first checkpoint that cannot be served as configured."""
    vocabularies = {target.name: check_target(target) for target in config.targets}
    if config.pool is not None:
        check_drafting(config.targets, vocabularies, config.pool)
    return list(warnings(config))


def check_drafting(targets: Sequence[TargetConfig], vocabularies: Mapping[str, str], pool: PoolConfig) -> None:
    manifest = check_pool(pool)
    for target in targets:
        if target.speculation is None:
            continue
        if vocabularies[target.name] != manifest.vocabulary_hash:
            raise ConfigError(
                f"target {target.name} ({target.path}) and the pool ({pool.path}) have different vocabularies; "
                "train a drafter for it, or set speculation: off"
            )
        check_exits(target.name, target.speculation, manifest)
        check_mirror(target, target.speculation.mirror)


def check_target(target: TargetConfig) -> str:
    """The hash of its vocabulary."""
    directory = resolve(target.path)
    positions = read_config(directory).max_positions
    if target.max_model_len is not None and target.max_model_len > positions:
        raise ConfigError(
            f"max_model_len {target.max_model_len} of target {target.name} exceeds the {positions} positions "
            "of its checkpoint; lower it"
        )
    check_weights(directory)
    check_pages(f"target {target.name}", target, target_positions(target, directory))
    return manifest_of(vocabulary_hash, directory)


def check_pool(pool: PoolConfig) -> Manifest:
    directory = resolve(pool.path)
    read_config(directory)
    manifest = manifest_of(Manifest.load, directory)
    if vocabulary_hash(directory) != manifest.vocabulary_hash:
        raise ConfigError(f"{directory}: the tokenizer is not the one its draftpool.json names; restore it")
    check_weights(directory)
    check_pages("pool", pool, pool_positions(pool, directory))
    return manifest


def manifest_of(read: Callable[[Path], T], directory: Path) -> T:
    """Files beside the weights that are damaged are the operator's to mend."""
    try:
        return read(directory)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def check_exits(name: str, speculation: Speculation, manifest: Manifest) -> None:
    if unknown := sorted(set(needed_exits(speculation)) - set(manifest.exits)):
        raise ConfigError(
            f"speculation of target {name} asks for depth {unknown[0]}; the drafter has the exits "
            f"{', '.join(map(str, manifest.exits))}"
        )


def check_mirror(target: TargetConfig, mirror: Mirror | None) -> None:
    num_layers = read_config(resolve(target.path)).num_layers
    if mirror is not None and (mirror.exit_layer or 0) > num_layers:
        raise ConfigError(
            f"mirror.exit_layer {mirror.exit_layer} of target {target.name} lies behind the {num_layers} layers of "
            "its checkpoint; lower it, or leave it out for half of them"
        )


def warnings(config: AppConfig) -> Iterator[str]:
    for target in config.targets:
        directory = resolve(target.path)
        yield from (f"warning: {warning}" for warning in check_text(target.name, directory))
        held = target_positions(target, directory) // target.page_size * target.page_size
        wanted = target.max_model_len or read_config(directory).max_positions
        if held < wanted:
            yield (
                f"warning: kv_mb {target.kv_mb} of target {target.name} holds {held} positions, fewer than the "
                f"{wanted} of its max_model_len; longer requests are refused; raise kv_mb, or lower max_model_len"
            )


def summary(config: AppConfig) -> Iterator[str]:
    for target in config.targets:
        decoder = read_config(resolve(target.path))
        speculation = target.speculation
        how = in_words(speculation) if speculation else "no speculation"
        if speculation and speculation.mirror:
            how += ", drafted ahead"
        yield f"target {target.name}: {decoder.family}, {decoder.num_layers} layers, {target.dtype}, {how}"
    if config.pool is not None:
        exits = ", ".join(map(str, Manifest.load(resolve(config.pool.path)).exits))
        where = "colocated" if config.placement == "colocated" else f"{config.pool.num_replicas} replicas"
        yield f"pool: {where}, {config.pool.dtype}, exits {exits}"
    yield "ok"


def in_words(speculation: Speculation) -> str:
    if isinstance(speculation, GoodputSpeculation | EmaSpeculation):
        exits = f"exits {', '.join(map(str, speculation.exits))}" if speculation.exits else "any exit"
        return f"{speculation.policy}, {exits}, length 0 to {speculation.length}"
    if isinstance(speculation, TableSpeculation):
        steps = ", ".join(f"{length} from batch {batch}" for batch, length in speculation.table.items())
        return f"depth {speculation.depth}, length {steps}"
    return f"depth {speculation.depth}, length {speculation.length}"
