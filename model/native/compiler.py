"""Compiles the kernels for this machine, once: the library is kept under a name made of everything it depends on."""

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
from pathlib import Path

SOURCES = Path(__file__).parent
COMPILERS = ("g++", "clang++", "c++")
FLAGS = ("-std=c++20", "-O3", "-march=native", "-fPIC", "-shared", "-pthread", "-w")

logger = logging.getLogger(__name__)


class CompilerError(Exception):
    """No library can be had on this machine; the message says why."""


def find_compiler() -> str:
    """CXX when it is set, else the first C++ compiler on the path. Raises CompilerError."""
    asked = os.environ.get("CXX")
    for name in (asked,) if asked else COMPILERS:
        if found := shutil.which(name):
            return found
    tried = f"CXX={asked}" if asked else ", ".join(COMPILERS)
    raise CompilerError(f"no C++ compiler was found (tried {tried}); install g++ or clang++")


def cache_directory() -> Path:
    """DRAFTPOOL_CACHE, or draftpool/ in the user's cache folder; one of the user's own among temporary files where
    there is no home.
    """
    if own := os.environ.get("DRAFTPOOL_CACHE"):
        return Path(own)
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache) / "draftpool"
    with contextlib.suppress(RuntimeError):
        return Path.home() / ".cache" / "draftpool"
    return Path(tempfile.gettempdir()) / f"draftpool-{os.getuid()}"


def library_path() -> Path:
    """The compiled library, which can be loaded; compiles it (some seconds) unless it lies in the cache. Raises
    CompilerError.
    """
    compiler = find_compiler()
    try:
        path = cache_directory() / "native" / f"{_fingerprint(compiler)}.so"
        if not path.exists():
            _compile_once(compiler, path)
        _check_own(path.parent)
        ctypes.CDLL(str(path))  # refused where nothing may be executed, and for what is no library
    except OSError as error:
        raise CompilerError(
            f"the kernels cannot be kept and loaded ({error}); set DRAFTPOOL_CACHE to a folder that can be written and "
            "programs run from"
        ) from None
    return path


def _check_own(folder: Path) -> None:
    """Raises PermissionError where somebody else may have put what is about to be loaded."""
    for place in (folder, folder.parent):
        if place.stat().st_uid not in trusted():
            raise PermissionError(f"{place} belongs to another user")
    if folder.stat().st_mode & 0o002:
        raise PermissionError(f"everybody may write {folder}")


def trusted() -> tuple[int, ...]:
    """Users whose files are as good as our own."""
    return 0, os.getuid()


def _compile_once(compiler: str, path: Path) -> None:
    """The replicas of a node start together: one compiles, the others wait."""
    path.parent.mkdir(0o755, parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _compile(compiler, path)


def _compile(compiler: str, path: Path) -> None:
    """Under another name first, so that a process that comes by sees all of it or nothing."""
    logger.info("compiling the native kernels with %s, once for this machine", compiler)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        command = [compiler, *FLAGS, str(SOURCES / "native.cpp"), "-o", str(built)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CompilerError(
                f"{compiler} refused the kernels ({_first_error(done.stderr)}); install a newer g++ or clang++, or "
                "name one in CXX"
            )
        built.replace(path)


def _first_error(told: str) -> str:
    lines = told.strip().splitlines() or ["it said nothing"]
    return next((line for line in lines if "error" in line), lines[0])[:300]


def _fingerprint(compiler: str) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    digest = hashlib.sha256("\n".join((version, *FLAGS, platform.machine(), cpu_features())).encode())
    for source in sorted([*SOURCES.glob("*.h"), *SOURCES.glob("*.cpp")]):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:32]


def cpu_features() -> str:
    """What -march=native may use: the processor's flags, where the system tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
