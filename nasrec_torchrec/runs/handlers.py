"""A file system of fsspec over a user's iopath handlers. Only this module knows about handlers."""

import shutil
from collections.abc import Callable
from typing import IO, Any

from fsspec import AbstractFileSystem, register_implementation
from iopath.common.file_io import PathManager
from upath import UPath
from upath.registry import available_implementations
from upath.registry import register_implementation as register_path

# The user's function registers its handlers with this one.
_MANAGER = PathManager()


class HandledFileSystem(AbstractFileSystem):
    """The files below one scheme of the path manager. A folder exists as long as it holds something."""

    protocol: str
    root_marker = ""
    cachable = False

    def _uri(self, path: str) -> str:
        return f"{self.protocol}://{path}"

    def local_path(self, path: str) -> str:
        """Returns where the handler keeps a copy of a file on this machine."""
        return _MANAGER.get_local_path(self._uri(path))

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)
        names = self._names(path)
        if not names:
            if not _MANAGER.isfile(self._uri(path)):
                raise FileNotFoundError(self._uri(path))
            return [self.info(path)] if detail else [path]
        entries = [f"{path}/{name}".lstrip("/") for name in names]
        return [self.info(entry) for entry in entries] if detail else entries

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        if _MANAGER.isfile(self._uri(path)):
            return {"name": path, "size": None, "type": "file"}
        if self._names(path):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(self._uri(path))

    def _open(self, path: str, mode: str = "rb", *_: Any, **__: Any) -> IO[Any]:
        return _MANAGER.open(self._uri(path), mode)

    def get_file(self, rpath: str, lpath: str, *_: Any, **__: Any) -> None:
        shutil.copyfile(self.local_path(self._strip_protocol(rpath)), lpath)

    def put_file(self, lpath: str, rpath: str, *_: Any, **__: Any) -> None:
        target = self._uri(self._strip_protocol(rpath))
        if not _MANAGER.copy_from_local(lpath, target, overwrite=True):
            raise OSError(f"{target}: cannot be written")

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        source, target = (self._uri(self._strip_protocol(path)) for path in (path1, path2))
        if not _MANAGER.copy(source, target, overwrite=True):
            raise OSError(f"{source}: cannot be copied to {target}")

    def rm_file(self, path: str) -> None:
        _MANAGER.rm(self._uri(self._strip_protocol(path)))

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        for file in self.find(path) if recursive else [path]:
            self.rm_file(file)

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """Does nothing: a folder exists once it holds a file."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Does nothing: a folder exists once it holds a file."""

    def _names(self, path: str) -> list[str]:
        """Returns the sorted names in a folder; none if there is no such folder."""
        here = f"{self._uri(path)}/"
        try:
            entries = _MANAGER.ls(here)
        except (FileNotFoundError, NotADirectoryError):
            return []
        # Some stores mark a folder by an object of its own name; some handlers give whole keys.
        marks = [entry for entry in entries if entry.endswith("/") and here.endswith(entry)]
        return sorted({entry.rstrip("/").rpartition("/")[2] for entry in entries if entry not in marks} - {""})


def serve(register: Callable[[PathManager], Any]) -> None:
    """Registers handlers, and makes fsspec, and thus DCP, use them for their schemes."""
    before = set(_MANAGER._path_handlers)
    register(_MANAGER)
    for prefix in set(_MANAGER._path_handlers) - before:
        scheme, separator, _ = prefix.partition("://")
        if separator:
            register_implementation(scheme, type("Handled", (HandledFileSystem,), {"protocol": scheme}), clobber=True)
            if scheme not in available_implementations():
                register_path(scheme, type("HandledPath", (UPath,), {}))
