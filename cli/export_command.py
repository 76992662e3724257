"""`draftpool export-gguf`: writes a drafter as a GGUF file, with the metadata of its target's."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cli.arguments import whole
from cli.output import listed
from deployments.progress import loading
from drafters.manifest import NAME, Manifest, check_vocabulary, vocabulary_hash
from model.blocks import BlockFormat
from model.files import GGUF, resolve
from model.gguf.export import ExportOptions, export_gguf
from model.gguf.header import read_header
from model.gguf.unpack import GGUF_NAME
from model.gguf.writer import WRITABLE
from protocol.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    formats: Sequence[str] = [kind.value for kind in WRITABLE]
    parser.add_argument("folder", metavar="FOLDER", help="the drafter's checkpoint directory")
    parser.add_argument("out", type=Path, metavar="OUT", help=f"new {GGUF} file, alone in its folder with {NAME}")
    parser.add_argument("--like", required=True, metavar="FILE", help="the target's GGUF file, which has the metadata")
    parser.add_argument("--depth", type=whole(1), help="an exit, whose layers are kept (default: the deepest)")
    parser.add_argument("--format", choices=formats, default="Q8_0", help="of matrices (default: %(default)s)")
    parser.add_argument(
        "--embedding-format",
        choices=formats,
        default="Q4_0",
        help="of the embedding, which is the head too where they are tied (default: %(default)s)",
    )
    parser.add_argument(
        "--full-head",
        action="store_true",
        help="give a trimmed head rows of zeros for the tokens that it lacks: llama.cpp knows no trimmed heads",
    )


def run(args: argparse.Namespace) -> int:
    folder, like = resolve(args.folder), resolve(args.like)
    if not (like / GGUF_NAME).exists():
        raise ConfigError(f"--like {args.like} holds no GGUF file; give the target's")
    check_place(args.out)
    check_vocabulary(like, folder)
    manifest = cut_manifest(Manifest.load(folder), folder, args.depth)
    options = ExportOptions(
        manifest.exits[-1], BlockFormat(args.format), BlockFormat(args.embedding_format), args.full_head
    )
    with loading(folder) as progress:
        export_gguf(folder, read_header(like / GGUF_NAME), args.out, options, progress)
    manifest.save(args.out.parent)
    sys.stdout.write(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, exits {listed(manifest.exits)}\n")
    return 0


def check_place(out: Path) -> None:
    """Raises ConfigError unless the file is new and will be alone: the manifest speaks for all files of its folder."""
    if out.suffix != GGUF:
        raise ConfigError(f"{out} does not end with {GGUF}; name it so")
    others = [*out.parent.glob(f"*{GGUF}"), *out.parent.glob(NAME)]
    if others:
        raise ConfigError(f"{out.parent} holds {others[0].name} already; name a file in a new folder")


def cut_manifest(manifest: Manifest, folder: Path, depth: int | None) -> Manifest:
    """The exits up to the depth. Raises ConfigError if it is none of them."""
    if depth is not None and depth not in manifest.exits:
        raise ConfigError(f"--depth {depth} is no exit of {folder}; choose among {listed(manifest.exits)}")
    kept = [exit_ for exit_ in manifest.exits if depth is None or exit_ <= depth]
    return Manifest(tuple(kept), vocabulary_hash(folder), manifest.targets)
