import os
import stat
from pathlib import Path

import pytest
from support import forked

from nasrec_torchrec.modules.kernels.compiled_library import CompilerError, compiled_library

SOURCE = 'extern "C" int answer() { return ANSWER; }'
DEFINITIONS = {"ANSWER": "42"}


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kernel, a cache folder of its own, and a compiler that writes down how often it was called."""
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\necho called >> {tmp_path}/calls\nexec g++ "$@"\n')
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    file = tmp_path / "answer.cpp"
    file.write_text(SOURCE)
    return file


def _calls(source: Path) -> int:
    return len((source.parent / "calls").read_text().split())


def _answer(source: Path, environment: dict[str, str]) -> None:
    os.environ |= environment
    assert compiled_library(source, DEFINITIONS).answer() == 42


def test_processes_that_start_together_compile_once(source: Path):
    names = ("CXX", "TORCH_EXTENSIONS_DIR")
    context = forked()
    arguments = (source, {name: os.environ[name] for name in names})
    processes = [context.Process(target=_answer, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert compiled_library(source, DEFINITIONS).answer() == 42
    assert _calls(source) == 1
    left = sorted(file.suffix for file in (source.parent / "cache").iterdir())
    assert left == [".lock", ".so"], "temporary files are left"


def test_another_source_or_macro_is_another_library(source: Path):
    assert compiled_library(source, DEFINITIONS).answer() == 42
    assert compiled_library(source, {"ANSWER": "7"}).answer() == 7
    source.write_text(SOURCE.replace("ANSWER;", "ANSWER + 1;"))
    assert compiled_library(source, DEFINITIONS).answer() == 43
    assert _calls(source) == 3


def test_a_library_that_does_not_load_is_not_used(source: Path):
    compiled_library(source, DEFINITIONS)
    (library,) = (source.parent / "cache").glob("*.so")
    library.unlink()
    library.write_bytes(b"half a library")
    assert compiled_library(source, DEFINITIONS).answer() == 42


def test_a_folder_that_cannot_be_written_costs_only_the_cache(source: Path, monkeypatch: pytest.MonkeyPatch):
    (source.parent / "file").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(source.parent / "file" / "cache"))
    assert compiled_library(source, DEFINITIONS).answer() == 42


def test_errors_of_the_compiler_are_told(source: Path, monkeypatch: pytest.MonkeyPatch):
    source.write_text("no C++")
    with pytest.raises(CompilerError, match=r"error: .no. does not name a type"):
        compiled_library(source, DEFINITIONS)
    monkeypatch.setenv("CXX", "a-compiler-that-nobody-has")
    with pytest.raises(CompilerError, match=r"\$CXX is a-compiler-that-nobody-has, which cannot be run"):
        compiled_library(source, DEFINITIONS)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(source.parent / "cache"))
    with pytest.raises(CompilerError, match=r"no C\+\+ compiler was found"):
        compiled_library(source, DEFINITIONS)
