"""SHA-256 of files, by which a data set says what it holds."""

import hashlib
from functools import cache
from pathlib import Path
from typing import IO

_BLOCK = 1 << 20


def sha256(file: Path) -> str:
    """Checksum of a file's content.

    Raises:
        OSError: when it cannot be read.
    """
    with file.open("rb") as opened:
        return sha256_of(opened)


def sha256_of(opened: IO[bytes]) -> str:
    """Checksum of what is left to read of an open file."""
    digest = hashlib.sha256()
    while block := opened.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()


def known_sha256(file: Path) -> str:
    """The same, computed once in a process for a file of the same size and time."""
    stat = file.stat()
    return _known(file, stat.st_size, stat.st_mtime_ns)


@cache
def _known(file: Path, _size: int, _changed: int) -> str:
    return sha256(file)
