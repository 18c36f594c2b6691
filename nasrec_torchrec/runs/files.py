"""Writing files so that a reader never sees half of one, here or in a remote storage."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from nasrec_torchrec.runs.paths import PATHS, RemotePath

_T = TypeVar("_T")
_TEMPORARY = re.compile(r"\..+\.nasrec-tmp")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary local path; what is written there takes the place of ``path`` on success."""
    if isinstance(path, RemotePath):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / path.name
            yield temporary
            upload(temporary, path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.nasrec-tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in one step."""
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def read_text(path: Path) -> str:
    """Reads a text file.

    Raises:
        ValueError: when it does not exist or is not text.
    """
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None


def read_json(path: Path, kind: type[_T], remedy: str = "") -> _T:
    """Reads a JSON file of a known form.

    Args:
        path: the file.
        kind: what it must hold, as a type: a TypedDict, a dataclass, ``dict[str, Any]``.
        remedy: what the user can do about a damaged file.

    Raises:
        ValueError: naming the file, when it cannot be read or holds something else.
    """
    from pydantic import TypeAdapter, ValidationError  # takes a while; --help needs none of it

    text = read_text(path)
    hint = f"; {remedy}" if remedy else ""
    try:
        return TypeAdapter(kind).validate_python(json.loads(text))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: damaged, not a JSON document: {error}{hint}") from None
    except RecursionError:
        raise ValueError(f"{path}: damaged, nested too deeply{hint}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise ValueError(f"{path}: damaged, {where}: {first['msg']}{hint}") from None


def walk(folder: Path) -> Iterator[str]:
    """Paths below a folder, of all files in it, sorted in each folder; no links to folders are followed."""
    if isinstance(folder, RemotePath):
        yield from (str(file.relative_to(folder)) for file in folder.files())
        return
    for place, folders, files in os.walk(folder):
        folders.sort()
        yield from (os.path.relpath(os.path.join(place, name), folder) for name in sorted(files))


def is_temporary(name: str) -> bool:
    """Whether a file or folder has a name that one has here alone while it is written."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes left half written; to be called by the one process that writes the folder."""
    if isinstance(folder, RemotePath):
        return
    for place, folders, files in os.walk(folder):
        for name in filter(is_temporary, files):
            os.unlink(os.path.join(place, name))
        for name in [name for name in folders if is_temporary(name)]:
            folders.remove(name)
            shutil.rmtree(os.path.join(place, name))


def remove(folder: Path) -> None:
    """Removes a folder with everything in it, if it is there."""
    if isinstance(folder, RemotePath):
        for file in list(folder.files()):
            file.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def upload(source: Path, target: Path) -> None:
    """Copies a local file.

    Raises:
        OSError: when that fails.
    """
    if not PATHS.copy_from_local(str(source), str(target), overwrite=True):
        raise OSError(f"{target}: cannot be written")


def local_copy(file: Path) -> Path:
    """The file itself, or where the path manager keeps a copy of a remote one on this machine."""
    return Path(PATHS.get_local_path(str(file))) if isinstance(file, RemotePath) else file


@contextmanager
def local_folder(folder: Path) -> Iterator[Path]:
    """The folder itself, or a temporary copy of a remote one."""
    if not isinstance(folder, RemotePath):
        yield folder
        return
    with tempfile.TemporaryDirectory() as copies:
        for file in folder.files():
            target = Path(copies) / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            with file.open("rb") as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy)
        yield Path(copies)


def publish(source: Path, target: RemotePath, last: str) -> None:
    """Replaces a remote folder by a local one.

    Args:
        source: folder to copy.
        target: what was there is removed.
        last: name of the file by which a folder counts as complete.
    """
    remove(target)
    files = [file for file in source.rglob("*") if file.is_file()]
    for file in sorted(files, key=lambda file: file == source / last):
        upload(file, target / file.relative_to(source))
