"""One writer for each folder, or several that know of each other: a lock that vanishes with its processes."""

import fcntl
import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from iopath.common.file_io import get_cache_dir

from nasrec_torchrec.runs.names import LOCK
from nasrec_torchrec.runs.paths import is_remote

# A process retries when the previous holder removed the lock file just before it acquired the lock.
_ATTEMPTS = 20


@contextmanager
def lock(folder: Path, shared: bool = False) -> Iterator[None]:
    """Holds a folder for writing; it is created, so that one that cannot be written is refused at once.

    The operating system releases the lock when the process ends, however that happens. For a remote folder the lock
    only excludes processes of this machine, because object stores have no locks.

    Args:
        folder: that this process is about to write.
        shared: whether others may hold it too that say the same, such as the workers of one search.

    Raises:
        ValueError: If another process holds the folder, or it cannot be written.
    """
    file = _acquire(folder, _lock_file(folder), shared)
    try:
        yield
    finally:
        with suppress(OSError):
            if shared:  # the last one to leave removes it
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Removed while it is held: whoever opened it meanwhile sees that it has lost its name, and opens a new one.
            os.unlink(file.name)
        file.close()


def _lock_file(folder: Path) -> Path:
    if is_remote(folder):
        return Path(get_cache_dir()) / "locks" / hashlib.sha256(str(folder).encode()).hexdigest()
    return folder / LOCK


def _acquire(folder: Path, path: Path, shared: bool) -> IO[str]:
    for attempt in range(_ATTEMPTS):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+")
        except (FileExistsError, NotADirectoryError):
            raise ValueError(f"{folder}: expected a folder, found a file in its place") from None
        except OSError as error:
            # The folder may have been renamed between the two calls.
            if isinstance(error, FileNotFoundError) and attempt < _ATTEMPTS - 1:
                continue
            raise ValueError(f"{folder}: cannot be written: {error.strerror or error}") from None
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise ValueError(
                f"{folder}: {holder} is writing here; wait until it ends, or choose another folder"
            ) from None
        except OSError as error:
            file.close()
            raise ValueError(f"{folder}: cannot be locked: {error.strerror or error}") from None
        if _still_named(file, path):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            return file
        file.close()
    raise ValueError(f"{folder}: another process is writing here; wait until it ends, or choose another folder")


def _still_named(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
