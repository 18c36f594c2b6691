"""Paths of remote files: ``universal_pathlib`` over the file systems of fsspec.

``s3://`` is served by s3fs, ``gs://`` by gcsfs, ``hdfs://`` by pyarrow, where they are installed. A scheme for which
handlers were registered (``--path-handlers``) is served by those, see :mod:`nasrec_torchrec.runs.handlers`.
"""

import hashlib
import importlib
import os
from pathlib import Path
from typing import Any, cast

from fsspec import get_filesystem_class
from iopath.common.file_io import file_lock, get_cache_dir
from upath import UPath

from nasrec_torchrec.runs.handlers import HandledFileSystem, serve

# Others write there too, so an earlier listing may be out of date.
_OPTIONS: dict[str, Any] = {"use_listings_cache": False}


def to_path(text: str | Path) -> Path:
    """Makes a path of a text: a local path, or a ``UPath`` for a URI; a path stays as it is.

    Code outside of this package treats both alike, as a ``Path``; what only one of them can do is in
    :mod:`nasrec_torchrec.runs.files`.

    Raises:
        ValueError: If no installed library and no registered handler serves the scheme.
    """
    if not isinstance(text, str):
        return text
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Path(text)
    if scheme == "file":
        return Path(rest)
    try:
        # Fails where nothing serves the scheme; UPath would take some of those texts for local paths.
        get_filesystem_class(scheme.rpartition("::")[2])
        path: UPath = UPath(text, **_OPTIONS)
        _ = path.fs  # fails where the library of the scheme is not installed
    except (ImportError, ValueError) as error:
        raise ValueError(f"{text}: {error}") from None
    return cast(Path, path)


def is_remote(path: Path) -> bool:
    """Returns whether a path is outside of this machine's file system. Only modules of this package may ask."""
    return isinstance(path, UPath) and not isinstance(path, Path)


def remote(path: Path) -> tuple[Any, str]:
    """Returns the file system of a path that is remote, and its name there."""
    found = cast(UPath, path)
    return found.fs, found.path


def fetched(path: Path) -> Path:
    """Copies a remote file to a local cache and returns the copy; a file that has changed is fetched again."""
    system, name = remote(path)
    if isinstance(system, HandledFileSystem):
        return Path(system.local_path(name))
    # The name depends on the size, time or checksum that the file system reports.
    digest = hashlib.sha256(f"{path} {system.ukey(name)}".encode()).hexdigest()
    cached = Path(get_cache_dir()) / "fsspec" / digest / path.name
    with file_lock(str(cached)):
        if not cached.exists():
            system.get_file(name, f"{cached}.tmp")
            os.replace(f"{cached}.tmp", cached)
    return cached


def register_handlers(name: str) -> None:
    """Calls a function that registers its handlers with an iopath ``PathManager`` that it is given.

    Args:
        name: ``module:function``.

    Raises:
        ValueError: If it cannot be imported.
    """
    module, _, function = name.partition(":")
    try:
        register = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"path_handlers: expected module:function, found {name!r}: {error}") from None
    serve(register)
