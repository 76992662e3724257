"""The `draftpool` command. Only the module of the chosen subcommand is imported."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import MappingProxyType
from typing import NoReturn

from protocol.errors import DraftPoolError

COMMANDS = MappingProxyType(
    {
        "serve": ("cli.serve_command", "serve the models of a config over HTTP and gRPC until Ctrl-C"),
        "demo": ("cli.demo_command", "serve the demo models, stream an answer from each, measure the pool, stop"),
        "generate": ("cli.generate", "complete prompts in this process, without Ray"),
        "check": ("cli.check", "validate a config and its checkpoints, of the weights their names and shapes"),
        "bench": ("bench.command", "measure our loops and their peers on the same prompts and weights"),
        "profile": ("cli.profile_command", "measure what drafts and passes of a config cost on this machine"),
        "plan": ("cli.plan_command", "show what the router would choose for a batch, and why"),
        "simulate": ("cli.simulate_command", "predict tokens per second for a number of draft replicas"),
        "trace": ("cli.trace_command", "write what the last rounds of a running server took, for Perfetto"),
        "import": ("cli.import_command", "write a GGUF file as a Hugging Face checkpoint"),
        "export-gguf": ("cli.export_command", "write a drafter as a GGUF file, with its target's metadata"),
        "trim": ("cli.trim_command", "cut a drafter's LM head to the tokens that occur most in a corpus"),
        "train-drafter": ("cli.train_command", "train a nested drafter for a target"),
    }
)


class _Parser(argparse.ArgumentParser):
    """Prints usage errors as one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    command_name = next((word for word in arguments if not word.startswith("-")), None)
    args = _parser(command_name).parse_args(arguments)
    try:
        status: int = importlib.import_module(COMMANDS[args.command][0]).run(args)
    except DraftPoolError as error:
        sys.stderr.write(f"draftpool: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def _parser(command_name: str | None) -> argparse.ArgumentParser:
    parser = _Parser(prog="draftpool", description="One pool of nested drafters speeds up every LLM that you serve.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, description) in COMMANDS.items():
        command = commands.add_parser(name, help=description, description=description[0].upper() + description[1:])
        if name == command_name:
            importlib.import_module(module).add_arguments(command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
