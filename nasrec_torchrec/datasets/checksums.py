"""SHA-256 checksums of files, by which a data set identifies what it holds."""

import hashlib
from functools import cache
from pathlib import Path
from typing import IO

_BLOCK = 1 << 20


def sha256(file: Path) -> str:
    """Returns the checksum of a file's content.

    Raises:
        OSError: If the file cannot be read.
    """
    with file.open("rb") as opened:
        return sha256_of(opened)


def sha256_of(opened: IO[bytes]) -> str:
    """Returns the checksum of the rest of an open file."""
    digest = hashlib.sha256()
    while block := opened.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()


def known_sha256(file: Path) -> str:
    """Returns the checksum of a file; a process computes it once for a file of the same size and time."""
    stat = file.stat()
    return _known(file, stat.st_size, stat.st_mtime_ns)


@cache
def _known(file: Path, _size: int, _changed: int) -> str:
    return sha256(file)
