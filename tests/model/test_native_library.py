"""How the native kernels are compiled, kept and loaded, and what runs where they cannot be had."""

from __future__ import annotations

import platform
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from model.execution import SLOWER, Execution, runs
from model.load import load_decoder
from model.native import compiler
from model.native.compiler import CompilerError, library_path
from model.native.library import features
from protocol.errors import ConfigError
from protocol.stats import Runs
from targets.model import load_target
from tests.model.families import make_checkpoint, needs_compiler
from tests.model.kernels import forget_library, load


@pytest.fixture
def fresh_process() -> Iterator[None]:
    """As in a process that has not looked for kernels."""
    forget_library()
    yield
    forget_library()


def no_compiler(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")


def old_compiler(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    script = folder / "g++-4"
    script.write_text(
        "#!/bin/sh\n[ $1 = --version ] || { echo 'In file included'; echo 'simd.h:1: error: no'; exit 1; } >&2\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setenv("DRAFTPOOL_CACHE", str(folder / "cache"))


def compiler_that_does_not_run(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    script = folder / "c++"
    script.write_bytes(b"\x7fELF not really")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))


def cache_that_is_a_file(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / "file").touch()
    monkeypatch.setenv("DRAFTPOOL_CACHE", str(folder / "file"))


def cache_that_nothing_runs_from(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """What the loader says of a noexec mount, it says of a file that is no library."""
    monkeypatch.setenv("DRAFTPOOL_CACHE", str(folder))
    (folder / "native").mkdir()
    monkeypatch.setattr(compiler, "_compile_once", lambda found, isa, path: path.write_text("no library"))


def cache_that_everybody_writes(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    cache_that_nothing_runs_from(monkeypatch, folder)
    (folder / "native").chmod(0o777)


MISSING = [
    (no_compiler, r"no C\+\+ compiler was found \(tried CXX=no-such-compiler\); install g\+\+ or clang\+\+"),
    (old_compiler, r"refused the kernels \(simd\.h:1: error: no\); install a newer g\+\+"),
    (compiler_that_does_not_run, r"cannot be stored and loaded \(.*Exec format error"),
    (cache_that_is_a_file, r"cannot be stored and loaded \(.*; set DRAFTPOOL_CACHE to a folder"),
    (cache_that_nothing_runs_from, r"cannot be stored and loaded \(.*; set DRAFTPOOL_CACHE to a folder"),
    (cache_that_everybody_writes, r"everybody may write .*native\); set DRAFTPOOL_CACHE to a folder"),
]


@needs_compiler
@pytest.mark.usefixtures("fresh_process")
@pytest.mark.parametrize(("spoil", "message"), MISSING)
def test_where_kernels_cannot_be_had_steps_are_eager_and_the_log_says_so_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[pytest.MonkeyPatch, Path], None],
    message: str,
) -> None:
    (tmp_path / "spoilt").mkdir()
    spoil(monkeypatch, tmp_path / "spoilt")
    for name in ("target", "drafter"):
        decoder = load("llama", tmp_path / name, torch.float32, Execution.AUTO)
        assert not decoder.is_deterministic
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.endswith(SLOWER)
    assert re.search(message, told)
    assert runs(decoder, Execution.AUTO) == Runs("torch, cpu", told.removesuffix(f"; {SLOWER}"))
    with pytest.raises(ConfigError, match=rf"execution native: .*{message}.*; or set execution: auto"):
        load("llama", tmp_path / "drafter", torch.float32, Execution.NATIVE)


@needs_compiler
@pytest.mark.usefixtures("fresh_process")
def test_a_cache_of_somebody_else_is_not_loaded_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_that_nothing_runs_from(monkeypatch, tmp_path)
    monkeypatch.setattr(compiler, "trusted_users", lambda: (tmp_path.stat().st_uid + 1,))
    with pytest.raises(CompilerError, match="belongs to another user"):
        library_path()


@needs_compiler
def test_without_a_home_kernels_are_kept_among_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("DRAFTPOOL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert library_path().parents[2] == tmp_path


def test_who_runs_a_decoder_is_told_without_a_reason_where_it_was_asked_for(tmp_path: Path) -> None:
    assert runs(load("llama", tmp_path, torch.float32, Execution.EAGER), Execution.EAGER) == Runs("torch, cpu")


@needs_compiler
def test_who_runs_a_native_decoder_is_told_with_its_instructions(tmp_path: Path) -> None:
    assert runs(load("llama", tmp_path, torch.float32), Execution.AUTO) == Runs(f"native kernels, {features()}")


@pytest.mark.parametrize("execution", [Execution.AUTO, Execution.NATIVE])
def test_on_a_gpu_nobody_is_told_to_install_a_compiler(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, execution: Execution
) -> None:
    """The device of tensors that have no memory stands in for one."""
    directory, device = make_checkpoint("llama", tmp_path, seed=3), torch.device("meta")
    if execution is Execution.NATIVE:
        with pytest.raises(
            ConfigError, match="run on a CPU, not on meta; give this model no GPU; or set execution: auto"
        ):
            load_decoder(directory, dtype=torch.float32, device=device, execution=execution)
        return
    decoder = load_decoder(directory, dtype=torch.float32, device=device, execution=execution)
    assert runs(decoder, execution) == Runs("torch, meta")
    assert caplog.text == ""


@pytest.mark.parametrize(("permitted", "widest"), [(True, "amx"), (False, "avx512_bf16")])
def test_tiles_are_used_by_leave_of_the_operating_system_only(
    permitted: bool, widest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "cpu_features", lambda: " ".join(compiler.INSTRUCTION_SETS[0].needs))
    monkeypatch.setattr(compiler, "tiles_permitted", lambda: permitted)
    assert compiler.available_isas()[0].name == widest


@pytest.mark.parametrize(("name", "num_asked"), [("avx512_bf16", 0), ("portable", 0), ("amx", 1), ("", 1)])
def test_tiles_are_asked_for_only_where_the_chosen_set_has_them(
    name: str, num_asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(compiler, "cpu_features", lambda: " ".join(compiler.INSTRUCTION_SETS[0].needs))
    monkeypatch.setattr(compiler, "tiles_permitted", lambda: not asked.append(True))  # type: ignore[func-returns-value]
    monkeypatch.setenv(compiler.ISA_VARIABLE, name)
    assert compiler.isas_to_try()[0].name == (name or "amx")
    assert len(asked) == num_asked


@pytest.mark.skipif(platform.machine() != "x86_64", reason="asks Linux on x86-64")
def test_linux_gives_leave_where_there_are_tiles_and_refuses_where_there_are_none() -> None:
    assert compiler.tiles_permitted() == ("amx_tile" in compiler.cpu_features().split())


@needs_compiler
def test_kernels_that_do_not_compile_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAFTPOOL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compiler, "FLAGS", ("--no-such-flag",))
    with pytest.raises(compiler.CompilerError, match="refused the kernels"):
        compiler.library_path()
    assert {one.suffix for one in (tmp_path / "cache" / "native").iterdir()} == {".lock"}


@needs_compiler
def test_kernels_are_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAFTPOOL_CACHE", str(tmp_path))
    first = compiler.library_path()
    written = first.stat().st_mtime_ns
    assert compiler.library_path() == first
    assert first.stat().st_mtime_ns == written


def test_steps_that_must_be_deterministic_are_refused_in_plain_torch(tmp_path: Path) -> None:
    directory = make_checkpoint("llama", tmp_path, seed=3)
    with pytest.raises(ConfigError, match=r"cannot be deterministic in plain torch.*install a C\+\+ compiler"):
        load_target(
            directory,
            dtype=torch.bfloat16,
            num_positions=64,
            page_size=16,
            execution=Execution.EAGER,
            deterministic=True,
        )
