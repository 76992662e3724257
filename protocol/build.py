"""Generates protocol/pb/ from every protocol/*.proto: `python -m protocol.build [--check]` (needs grpcio-tools)."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

PROTOCOL = Path(__file__).resolve().parent


def build(out: Path) -> None:
    """Writes <out>/protocol/pb/*. The sources are mapped to protocol/pb/ first, so that imports come out right."""
    from grpc_tools import protoc

    names = sorted(path.name for path in PROTOCOL.glob("*.proto"))
    flags = [f"--{kind}={out}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    arguments = ["protoc", f"--proto_path=protocol/pb={PROTOCOL}", *flags]
    status = protoc.main([*arguments, *(f"protocol/pb/{name}" for name in names)])
    if status != 0:
        raise SystemExit(f"protoc failed with {status} on {', '.join(names)}")


def stale() -> list[str]:
    """Names of the generated files that are missing, too many, or not what the sources give."""
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        fresh = _contents(Path(folder) / "protocol" / "pb")
    present = _contents(PROTOCOL / "pb")
    return sorted(name for name in fresh.keys() | present.keys() if fresh.get(name) != present.get(name))


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*_pb2*.py*") if path.suffix in (".py", ".pyi")}


def main() -> None:
    if sys.argv[1:] == ["--check"]:
        if names := stale():
            raise SystemExit(f"protocol/pb is not current ({', '.join(names)}); run python -m protocol.build")
    else:
        build(PROTOCOL.parent)


if __name__ == "__main__":
    main()
