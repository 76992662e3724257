"""Compiles the kernels for this machine, once. The library's file name is a hash of everything it depends on."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent
COMPILERS = ("g++", "clang++", "c++")
FLAGS = ("-std=c++20", "-O3", "-ffp-contract=off", "-fPIC", "-shared", "-pthread", "-w")
ISA_VARIABLE = "DRAFTPOOL_ISA"
# Of Linux on x86-64: the call arch_prctl, its request for a part of the processor's state, and the tiles' data.
_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA = 158, 0x1023, 18


@dataclass(frozen=True, slots=True)
class InstructionSet:
    """An instruction set. flags: compiler flags. needs: CPU flags in /proc/cpuinfo that it requires."""

    name: str
    flags: tuple[str, ...]
    needs: frozenset[str]


def _extend(base: InstructionSet, name: str, flags: str, needs: str) -> InstructionSet:
    return InstructionSet(name, (*base.flags, *flags.split()), base.needs | frozenset(needs.split()))


_AVX2 = InstructionSet("avx2", ("-mavx2", "-mfma", "-mbmi2", "-mf16c"), frozenset(("avx2", "fma", "bmi2", "f16c")))
_AVX512 = _extend(
    _AVX2,
    "avx512",
    "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512",
    "avx512f avx512bw avx512dq avx512vl",
)
_VNNI = _extend(_AVX512, "avx512_vnni", "-mavx512vnni", "avx512_vnni")
_BF16 = _extend(_VNNI, "avx512_bf16", "-mavx512bf16", "avx512_bf16")
_AMX = _extend(_BF16, "amx", "-mamx-tile -mamx-bf16 -mamx-int8 -DDRAFTPOOL_AMX", "amx_tile amx_bf16 amx_int8")
_AVX2_VNNI = _extend(_AVX2, "avx2_vnni", "-mavxvnni", "avx_vnni")
_PORTABLE = InstructionSet("portable", (), frozenset())
INSTRUCTION_SETS = (_AMX, _BF16, _VNNI, _AVX512, _AVX2_VNNI, _AVX2, _PORTABLE)

logger = logging.getLogger(__name__)


class CompilerError(Exception):
    """The kernels cannot be built on this machine; the message says why."""


def find_compiler() -> str:
    """The path of the compiler that CXX names, else of the first C++ compiler found. Raises CompilerError."""
    configured = os.environ.get("CXX")
    for name in (configured,) if configured else COMPILERS:
        if path := shutil.which(name):
            return path
    tried = f"CXX={configured}" if configured else ", ".join(COMPILERS)
    raise CompilerError(f"no C++ compiler was found (tried {tried}); install g++ or clang++")


def cache_directory() -> Path:
    """DRAFTPOOL_CACHE, or draftpool/ in the user's cache folder, or a folder in TMPDIR if there is no home."""
    if configured := os.environ.get("DRAFTPOOL_CACHE"):
        return Path(configured)
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache) / "draftpool"
    with contextlib.suppress(RuntimeError):
        return Path.home() / ".cache" / "draftpool"
    return Path(tempfile.gettempdir()) / f"draftpool-{os.getuid()}"


def available_isas() -> tuple[InstructionSet, ...]:
    """The instruction sets of this processor that its kernel lets this process use, widest first."""
    return tuple(isa for isa in INSTRUCTION_SETS if is_available(isa))


def is_available(isa: InstructionSet) -> bool:
    """Whether this process may use it. The kernel is asked for tiles only for a set that has them."""
    return isa.needs <= frozenset(cpu_features().split()) and ("amx_tile" not in isa.needs or tiles_permitted())


def tiles_permitted() -> bool:
    """Asks the kernel for the tiles of AMX, for all threads of this process: it ends a process that uses them unasked.

    It refuses where the processor has none, or where signals have too small a stack for them.
    """
    return int(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA)) == 0


def isas_to_try() -> tuple[InstructionSet, ...]:
    """The instruction sets to try in order: all available ones, or the one in DRAFTPOOL_ISA. Raises CompilerError."""
    name = os.environ.get(ISA_VARIABLE)
    if not name:
        return available_isas()
    chosen = tuple(isa for isa in INSTRUCTION_SETS if isa.name == name and is_available(isa))
    if not chosen:
        names = ", ".join(isa.name for isa in available_isas())
        raise CompilerError(f"{ISA_VARIABLE}={name} is not supported by this processor, which has: {names}")
    return chosen


def library_path() -> Path:
    """The path of the compiled library; compiles it, which takes some seconds, unless it is in the cache.

    If the compiler is too old for the widest instruction set, tries the next one. Raises CompilerError.
    """
    compiler, refused = find_compiler(), None
    for isa in isas_to_try():
        try:
            path = _loadable(compiler, isa)
        except OSError as error:
            raise CompilerError(
                f"the kernels cannot be stored and loaded ({error}); set DRAFTPOOL_CACHE to a folder that is writable "
                "and allows execution"
            ) from None
        except CompilerError as error:
            refused = refused or error
            continue
        if refused:
            logger.warning("kernels for %s only: %s", isa.name, refused)
        return path
    assert refused is not None, "every processor has the portable set"
    raise refused


def _loadable(compiler: str, isa: InstructionSet) -> Path:
    path = cache_directory() / "native" / f"{isa.name}-{_fingerprint(compiler, isa)}.so"
    if not path.exists():
        _compile_once(compiler, isa, path)
    _check_own(path.parent)
    ctypes.CDLL(str(path))  # raises OSError if the folder does not allow execution or the file is damaged
    return path


def _check_own(folder: Path) -> None:
    """Raises PermissionError if another user could have written the library."""
    for place in (folder, folder.parent):
        if place.stat().st_uid not in trusted_users():
            raise PermissionError(f"{place} belongs to another user")
    if folder.stat().st_mode & 0o002:
        raise PermissionError(f"everybody may write {folder}")


def trusted_users() -> tuple[int, ...]:
    """User ids whose files may be loaded: root and our own."""
    return 0, os.getuid()


def _compile_once(compiler: str, isa: InstructionSet, path: Path) -> None:
    """Compiles under a file lock: the replicas of a node start together; one compiles and the others wait."""
    path.parent.mkdir(0o755, parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _compile(compiler, isa, path)


def _compile(compiler: str, isa: InstructionSet, path: Path) -> None:
    """Compiles to a temporary file and renames it, so that other processes never see a partial library."""
    logger.info("compiling the native kernels for %s with %s, once for this machine", isa.name, compiler)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        command = [compiler, *_flags(isa), str(SOURCES / "native.cpp"), "-o", str(built)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CompilerError(
                f"{compiler} refused the kernels ({_first_error(done.stderr)}); install a newer g++ or clang++, or "
                "name one in CXX"
            )
        built.replace(path)


def _first_error(output: str) -> str:
    lines = output.strip().splitlines() or ["no message"]
    return next((line for line in lines if "error" in line), lines[0])[:300]


def _flags(isa: InstructionSet) -> tuple[str, ...]:
    return (*FLAGS, *isa.flags, f'-DDRAFTPOOL_ISA="{isa.name}"')


def _fingerprint(compiler: str, isa: InstructionSet) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    digest = hashlib.sha256("\n".join((version, *_flags(isa), platform.machine(), cpu_features())).encode())
    for source in sorted([*SOURCES.glob("*.h"), *SOURCES.glob("*.cpp")]):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:32]


def cpu_features() -> str:
    """The processor's flags in /proc/cpuinfo, or its name if there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
