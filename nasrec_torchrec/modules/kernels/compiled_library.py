"""C++ sources of this package as libraries, compiled for this machine when they are first needed."""

import ctypes
import fcntl
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fno-math-errno", "-pthread")
_LOG = logging.getLogger(__name__)
_SECONDS = 120


class CompilerError(RuntimeError):
    """A library could not be compiled or loaded on this machine."""


def compiled_library(source: Path, definitions: Mapping[str, str]) -> ctypes.CDLL:
    """Loads the library of a source, and compiles it first unless an earlier process of this machine did.

    Libraries are kept in ``$TORCH_EXTENSIONS_DIR``, or in ``nasrec_torchrec`` of the user's cache folder, under a name
    that holds the source, the compiler and the processor's instruction set: folders may be shared by machines that
    differ. Processes that start together wait for the one that compiles. Where the folder cannot be written, the
    library is compiled for this process alone.

    Args:
        source: C++ file.
        definitions: macros to compile it with.

    Raises:
        CompilerError: If there is no compiler, or it fails.
    """
    compiler = _compiler()
    folder = _cache_folder()
    tag = "-".join(definitions.values())
    library = folder / f"{source.stem}-{tag}-{_key(source, definitions, compiler)}.so"
    try:
        if not library.exists():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with _locked(library.with_suffix(".lock")):
                if not library.exists():
                    _compile(source, definitions, compiler, library)
        return ctypes.CDLL(str(library))
    except OSError as error:
        _LOG.info("%s: %s; the kernel is compiled for this process alone", folder, error)
    with tempfile.TemporaryDirectory() as own:
        library = Path(own) / library.name
        _compile(source, definitions, compiler, library)
        try:
            return ctypes.CDLL(str(library))
        except OSError as error:
            raise CompilerError(f"the compiled {source.name} cannot be loaded: {error}") from None


def compiled_function(source: Path, definitions: Mapping[str, str], name: str, otherwise: str) -> Any:
    """Returns a function of :func:`compiled_library`; None if there is none on this machine, which is logged.

    Args:
        source: C++ file.
        definitions: macros to compile it with.
        name: name of the function.
        otherwise: what happens without it, for the log.
    """
    try:
        return getattr(compiled_library(source, definitions), name)
    except CompilerError as error:
        _LOG.warning("%s: %s", otherwise, error)
        return None


def _compile(source: Path, definitions: Mapping[str, str], compiler: tuple[str, ...], library: Path) -> None:
    """Compiles to a temporary name first: whoever finds the library finds all of it."""
    temporary = library.with_name(f".{library.name}.{os.getpid()}.tmp")
    macros = [f"-D{name}={value}" for name, value in definitions.items()]
    command = [*compiler, *FLAGS, *macros, str(source), "-o", str(temporary)]
    started = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        if done.returncode:
            raise CompilerError(f"{shlex.join(command)} failed: {done.stderr.strip()[-500:] or done.returncode}")
        temporary.replace(library)
    except subprocess.TimeoutExpired:
        raise CompilerError(f"{shlex.join(command)} did not end within {_SECONDS} s") from None
    finally:
        temporary.unlink(missing_ok=True)
    _LOG.info("compiled %s in %.1f s into %s", source.name, time.monotonic() - started, library)


def _compiler() -> tuple[str, ...]:
    if wanted := os.environ.get("CXX"):
        command = tuple(shlex.split(wanted))
        if shutil.which(command[0]) is None:
            raise CompilerError(f"$CXX is {wanted}, which cannot be run")
        return command
    for name in ("g++", "c++", "clang++"):
        if found := shutil.which(name):
            return (found,)
    raise CompilerError("no C++ compiler was found ($CXX, g++, c++, clang++)")


def _cache_folder() -> Path:
    if folder := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "nasrec_torchrec"


def _key(source: Path, definitions: Mapping[str, str], compiler: tuple[str, ...]) -> str:
    executable = Path(shutil.which(compiler[0]) or compiler[0]).resolve()
    version = executable.stat()
    sources = [file.read_text() for file in (source, *sorted(source.parent.glob("*.h")))]
    parts = [sources, dict(definitions), FLAGS, compiler, str(executable), version.st_size, version.st_mtime]
    return hashlib.sha256(repr((parts, _instruction_set())).encode()).hexdigest()[:16]


@lru_cache(maxsize=1)
def _instruction_set() -> str:
    """Returns what decides the instructions that ``-march=native`` stands for."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    wanted = ("vendor_id", "cpu family", "model", "model name", "flags", "Features", "CPU part")
    return platform.machine() + platform.processor() + "".join(li for li in lines if li.split(":")[0].strip() in wanted)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("w") as lock:
        # Not every network file system has locks. Without, each process compiles, and the last one's library stays.
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
