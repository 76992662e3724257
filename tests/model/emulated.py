"""Instruction sets that this processor may lack, with some instructions in plain C++ (tests/model/native)."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from model.native import compiler
from model.native.compiler import InstructionSet
from model.native.library import features
from tests.model.kernels import forget_library

_AVX2 = compiler.INSTRUCTION_SETS[-2]


def _including(name: str) -> tuple[str, ...]:
    """Flags that differ where the header does, for a library is kept under a name made of its flags."""
    header = Path(__file__).parent / "native" / name
    return "-include", str(header), f"-DEMULATION_{header.stem}={zlib.crc32(header.read_bytes())}"


VNNI = InstructionSet("emulated_vnni", (*_AVX2.flags, "-D__AVXVNNI__", *_including("emulated_vnni.h")), _AVX2.needs)


def with_tiles(base: InstructionSet, *flags: str) -> InstructionSet:
    """A set that has VNNI, and AMX as an emulation."""
    added = ("-DDRAFTPOOL_AMX", *_including("emulated_tiles.h"), *flags)
    return InstructionSet(f"{base.name}_tiles", (*base.flags, *added), base.needs)


@contextmanager
def kernels_for(isa: InstructionSet) -> Iterator[None]:
    """The kernels are those of this set while it lasts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "INSTRUCTION_SETS", (isa,))
        patch.delenv(compiler.ISA_VARIABLE, raising=False)
        forget_library()
        try:
            yield
            assert features() == isa.name
        finally:
            forget_library()
