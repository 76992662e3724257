"""`draftpool import`: writes a GGUF file as a HF checkpoint, which transformers loads too."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from deployments.process import DTYPES
from deployments.progress import loading
from model.files import resolve
from model.gguf.hf_folder import write_hf_folder
from model.gguf.unpack import GGUF_NAME
from protocol.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="GGUF file, folder with one, or hub id")
    parser.add_argument("out", type=Path, metavar="OUT", help="new folder for config.json, safetensors and tokenizer")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bf16", help="of the dense weights (default: bf16)")


def run(args: argparse.Namespace) -> int:
    with loading(args.file):
        directory = resolve(args.file)
    if not (directory / GGUF_NAME).exists():
        raise ConfigError(f"{args.file} holds no GGUF file; give one, or use the checkpoint as it is")
    if args.out.exists() and any(args.out.iterdir()):
        raise ConfigError(f"{args.out} is not empty; name a new folder")
    with loading(args.file) as progress:
        write_hf_folder(directory, args.out, DTYPES[args.dtype], progress)
    sys.stdout.write(f"{args.out}: {args.dtype} safetensors, config, tokenizer\n")
    return 0
