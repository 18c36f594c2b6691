"""Writes files, local or remote, so that a reader never sees half of one."""

import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar, cast

import fsspec
from iopath.common.file_io import get_cache_dir

from nasrec_torchrec.messages import why
from nasrec_torchrec.progress import progress_bar
from nasrec_torchrec.runs.paths import fetched, is_remote, remote, to_path

_T = TypeVar("_T")
_TEMPORARY = re.compile(r"\..+\.nasrec-tmp")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary local path; on success, the file written there replaces ``path``."""
    if is_remote(path):
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
        ValueError: If it does not exist or is not text.
    """
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {why(error)}") from None


def read_json(path: Path, kind: type[_T], remedy: str = "") -> _T:
    """Reads a JSON file of a known form.

    Args:
        path: path of the file.
        kind: type of its content: a TypedDict, a dataclass, ``dict[str, Any]``.
        remedy: what the user can do about a damaged file, for the message.

    Raises:
        ValueError: If it cannot be read or holds something else; the message names the file.
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


def matching(pattern: str) -> list[str]:
    """Returns the files, local or remote, that a pattern with ``*`` matches, in no particular order."""
    if not is_remote(to_path(pattern)):
        return glob.glob(pattern.removeprefix("file://"))
    start, star, rest = pattern.partition("*")
    folder, _, name = start.rpartition("/")
    return [str(file) for file in to_path(folder).glob(f"{name}{star}{rest}")]


def identity(uri: str) -> Hashable:
    """Returns a value that is equal for all names of one file: links to it, and other spellings of its path."""
    path = to_path(uri)
    if is_remote(path) or not path.exists():
        return uri
    status = path.stat()
    return status.st_dev, status.st_ino


def remote_version(uri: str) -> str | None:
    """Returns the version of a remote file that its file system reports; empty if it reports none, None if local."""
    if not is_remote(to_path(uri)):
        return None
    try:
        system, name = fsspec.core.url_to_fs(uri)
        return str(system.ukey(name))
    except Exception:  # one that only a registered handler knows
        return ""


def is_folder(uri: str) -> bool:
    """Returns whether a path or a URI is that of a folder; a file system that cannot tell has none."""
    if re.search(r"(?:^|::)https?://", uri):
        return False  # to tell, fsspec would fetch the whole file
    try:
        return to_path(uri).is_dir()
    except Exception:  # of a file system that knows no folders, or does not answer: opening the file will tell
        return False


def open_binary(path: Path) -> IO[bytes]:
    """Opens a file to read its bytes: as a stream where a web server sends files only as a whole."""
    file = cast(IO[bytes], path.open("rb"))
    system = getattr(file, "fs", None)
    if system is None or "http" not in system.protocol or not getattr(file, "size", None):
        return file
    try:
        file.seek(1)
        file.read(1)
    except ValueError:
        return cast(IO[bytes], system.open(file.path, "rb", block_size=0))  # type: ignore[attr-defined]
    file.seek(0)
    return file


def local_names(uris: Sequence[str]) -> list[str] | None:
    """Returns the names by which a library that knows local files alone opens them; None if one is remote."""
    paths = [to_path(uri) for uri in uris]
    return None if any(map(is_remote, paths)) else [str(path) for path in paths]


def walk(folder: Path) -> Iterator[str]:
    """Yields the relative paths of all files below a folder, sorted per folder; links to folders are not followed."""
    if is_remote(folder):
        system, name = remote(folder)
        yield from sorted(file.removeprefix(name).lstrip("/") for file in system.find(name))
        return
    for place, folders, files in os.walk(folder):
        folders.sort()
        yield from (os.path.relpath(os.path.join(place, name), folder) for name in sorted(files))


def is_temporary(name: str) -> bool:
    """Returns whether a name is one that a file or folder has only while it is written."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_leftovers(folder: Path) -> None:
    """Removes half-written files of killed processes. Only the one process that writes the folder may call it."""
    if is_remote(folder):
        return
    for place, folders, files in os.walk(folder):
        for name in filter(is_temporary, files):
            os.unlink(os.path.join(place, name))
        for name in [name for name in folders if is_temporary(name)]:
            folders.remove(name)
            shutil.rmtree(os.path.join(place, name))


def remove(folder: Path) -> None:
    """Removes a folder with everything in it, if it exists."""
    if is_remote(folder):
        if folder.exists():
            system, name = remote(folder)
            system.rm(name, recursive=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def upload(source: Path, target: Path) -> None:
    """Copies a local file to a remote place.

    Raises:
        OSError: If the copy fails.
    """
    system, name = remote(target)
    system.put_file(str(source), name)


def move(source: Path, target: Path) -> None:
    """Renames a file or a whole folder; an existing file of the new name is replaced.

    Remote files are copied and removed one by one, because object stores cannot rename.
    """
    if not is_remote(source):
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)
        return
    system, name = remote(source)
    _, new = remote(target)
    for file in list(system.find(name)):
        system.mv(file, new + file.removeprefix(name))


def local_copy(file: Path) -> Path:
    """Returns the file itself, or a copy of a remote one on this machine."""
    return fetched(file) if is_remote(file) else file


def local_copies(files: Sequence[Path]) -> list[Path]:
    """Returns the same for several files, with a progress bar for remote ones."""
    if not any(map(is_remote, files)):
        return list(files)
    found = []
    with progress_bar(len(files), "fetch", "file") as bar:
        for file in files:
            found.append(local_copy(file))
            bar.update()
    return found


def require_local(path: Path, use: str) -> None:
    """Refuses a remote path where only a local one works.

    Args:
        path: any path.
        use: beginning of the message, which says what is wrong with it.

    Raises:
        ValueError: If it is remote.
    """
    if is_remote(path):
        raise ValueError(f"{use}, found {path}")


def place_beside(target: Path, ending: str) -> Path:
    """Returns a hidden local path for unfinished work: beside the target, or in the cache if the target is remote."""
    place = target.with_name(f".{target.name}.{ending}")
    if not is_remote(target):
        return place
    return Path(get_cache_dir()) / f"{hashlib.sha256(str(place).encode()).hexdigest()}.{ending}"


@contextmanager
def local_folder(folder: Path) -> Iterator[Path]:
    """Yields the folder itself, or a temporary copy of a remote one."""
    if not is_remote(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as copies:
        for file in walk(folder):
            target = Path(copies) / file
            target.parent.mkdir(parents=True, exist_ok=True)
            with (folder / file).open("rb") as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy)
        yield Path(copies)


def is_published(folder: Path, last: str) -> bool:
    """Returns whether a folder is complete: a local one is renamed when it is, a remote one gets its last file."""
    return (folder / last if is_remote(folder) else folder).exists()


def publish(source: Path, target: Path, last: str, make_way: Callable[[], object]) -> None:
    """Publishes a complete local folder at its final path.

    Args:
        source: complete folder; it is renamed to the target, or copied if that is remote.
        target: final path; existing files of a remote one are removed.
        last: name of the file by which a folder counts as complete.
        make_way: called to move away a local folder that is already there.
    """
    if not is_remote(target):
        if target.exists():
            make_way()
        source.rename(target)
        return
    remove(target)
    files = [file for file in source.rglob("*") if file.is_file()]
    for file in sorted(files, key=lambda file: file == source / last):
        upload(file, target / str(file.relative_to(source)))
