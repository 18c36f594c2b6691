"""Paths of files that lie elsewhere: one PathManager behind all that is read and written.

A URI is handled by what was registered for its scheme (``--path_handlers``), or else by the fsspec file system of that
name where it is installed: ``s3://`` by s3fs, ``gs://`` by gcsfs, ``hdfs://`` by pyarrow.
"""

import fnmatch
import hashlib
import importlib
import io
import os
from collections.abc import Generator, Iterator
from pathlib import Path, PosixPath, PurePosixPath
from typing import IO, Any, NoReturn

import fsspec
from iopath.common.file_io import PathHandler, PathManager, file_lock, get_cache_dir

PATHS = PathManager()


class FsspecHandler(PathHandler):
    """Every file system that fsspec knows."""

    def _get_supported_prefixes(self) -> list[str]:
        return [f"{protocol}://" for protocol in fsspec.available_protocols() if protocol not in ("file", "local")]

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[Any]:
        system, name = _file_system(path)
        return system.open(name, mode)

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        system, name = _file_system(path)
        # Named by what the file system says of the file, so that a changed one is fetched again.
        digest = hashlib.sha256(f"{path} {system.ukey(name)}".encode()).hexdigest()
        cached = Path(get_cache_dir()) / "fsspec" / digest / Path(name).name
        with file_lock(str(cached)):
            if force or not cached.exists():
                system.get_file(name, f"{cached}.tmp")
                os.replace(f"{cached}.tmp", cached)
        return str(cached)

    def _copy_from_local(self, local_path: str, dst_path: str, overwrite: bool = False, **kwargs: Any) -> bool:
        system, name = _file_system(dst_path)
        if not overwrite and system.exists(name):
            return False
        system.makedirs(os.path.dirname(name), exist_ok=True)
        system.put_file(local_path, name)
        return True

    def _copy(self, src_path: str, dst_path: str, overwrite: bool = False, **kwargs: Any) -> bool:
        system, name = _file_system(dst_path)
        if not overwrite and system.exists(name):
            return False
        system.makedirs(os.path.dirname(name), exist_ok=True)
        system.cp_file(_file_system(src_path)[1], name)
        return True

    def _exists(self, path: str, **kwargs: Any) -> bool:
        system, name = _file_system(path)
        return system.exists(name)

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        system, name = _file_system(path)
        return system.isfile(name)

    def _isdir(self, path: str, **kwargs: Any) -> bool:
        system, name = _file_system(path)
        return system.isdir(name)

    def _ls(self, path: str, **kwargs: Any) -> list[str]:
        system, name = _file_system(path)
        entries = system.ls(name, detail=False) if system.isdir(name) else []
        return [os.path.basename(entry.rstrip("/")) for entry in entries]

    def _mkdirs(self, path: str, **kwargs: Any) -> None:
        system, name = _file_system(path)
        system.makedirs(name, exist_ok=True)

    def _rm(self, path: str, **kwargs: Any) -> None:
        system, name = _file_system(path)
        system.rm_file(name)


def _file_system(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        # Others write there too: what was listed before may be outdated.
        system, name = fsspec.core.url_to_fs(path, use_listings_cache=False)
    except ImportError as error:
        raise ValueError(f"{path}: {error}") from None
    return system, name.rstrip("/")


PATHS.register_handler(FsspecHandler())


class RemotePath(PosixPath):
    """A URI with the methods of a path, for code that also takes local ones.

    What pathlib would ask the operating system for goes through :data:`PATHS`, or raises TypeError where that has no
    counterpart. Folders exist as long as they hold something.
    """

    def __str__(self) -> str:
        scheme, _, rest = super().__str__().partition("/")
        return f"{scheme.rstrip(':')}:{'///' if scheme.endswith('::') else '//'}{rest}"

    def __fspath__(self) -> NoReturn:
        raise TypeError(f"{self}: not a path of this machine")

    def open(  # type: ignore[override]
        self,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        if "b" in mode:
            return PATHS.open(str(self), mode)
        return io.TextIOWrapper(PATHS.open(str(self), f"{mode}b"), encoding or "utf-8", errors, newline)

    def exists(self, **_: Any) -> bool:
        return PATHS.exists(str(self)) or self.is_dir()

    def is_file(self, **_: Any) -> bool:
        return PATHS.isfile(str(self))

    def is_dir(self, **_: Any) -> bool:
        return bool(self._names())

    def iterdir(self) -> Generator["RemotePath", None, None]:
        yield from (self / name for name in self._names())

    def glob(self, pattern: str) -> Generator["RemotePath", None, None]:
        head, _slash, tail = pattern.partition("/")
        if set(head) & set("*?["):
            found = [self / name for name in fnmatch.filter(self._names(), head)]
        else:
            found = [self / head]
        if tail:
            for folder in found:
                yield from folder.glob(tail)
        else:
            yield from (path for path in found if path.exists())

    def files(self) -> Iterator["RemotePath"]:
        """All files below, in the order of their names."""
        for path in self.iterdir():
            if path.is_file():
                yield path
            else:
                yield from path.files()

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing to do: a folder is there when a file is."""

    def relative_to(self, *other: Any) -> PurePosixPath:  # type: ignore[override]
        """What is left is no URI any more."""
        return PurePosixPath(*super().relative_to(*other).parts)

    def unlink(self, missing_ok: bool = False) -> None:
        if not missing_ok or self.is_file():
            PATHS.rm(str(self))

    def rename(self, target: Any) -> Any:
        """Copies and removes: object stores know no renaming."""
        for file in [self] if self.is_file() else list(self.files()):
            relative = file.relative_to(self)
            self.copy_to(file, target / relative if relative.parts else target)
            file.unlink()
        return target

    replace = rename

    @staticmethod
    def copy_to(source: "RemotePath", target: "RemotePath") -> None:
        """Copies a file to another place of the same storage.

        Raises:
            OSError: when that fails.
        """
        if not PATHS.copy(str(source), str(target), overwrite=True):
            raise OSError(f"{source}: cannot be copied to {target}")

    def _names(self) -> list[str]:
        """Names of what lies in this folder, sorted; none where there is no such folder."""
        here = f"{self}/"
        try:
            entries = PATHS.ls(here)
        except (FileNotFoundError, NotADirectoryError):
            return []
        # Some stores mark a folder by an object of its own name; some handlers give whole keys.
        marks = [entry for entry in entries if entry.endswith("/") and here.endswith(entry)]
        return sorted({entry.rstrip("/").rpartition("/")[2] for entry in entries if entry not in marks} - {""})


def to_path(text: str | Path) -> Path:
    """A path of this machine, or a URI's; a path stays what it is."""
    if isinstance(text, Path):
        return text
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Path(text)
    if scheme == "file":
        return Path(rest)
    return RemotePath(f"{scheme}{':' if rest.startswith('/') else ''}:", rest.lstrip("/"))


def is_remote(path: Path) -> bool:
    """Whether a path lies elsewhere than in this machine's file system. For the modules of this package alone."""
    return isinstance(path, RemotePath)


def register_handlers(name: str) -> None:
    """Calls a function that registers its handlers with the path manager it is given.

    Args:
        name: ``module:function``.

    Raises:
        ValueError: when it cannot be imported.
    """
    module, _, function = name.partition(":")
    try:
        register = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"path_handlers: expected module:function, found {name!r}: {error}") from None
    register(PATHS)
