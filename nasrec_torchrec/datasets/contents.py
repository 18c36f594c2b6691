"""What source files hold: the checksum decides, so that copied files are the same data and replaced ones are not."""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nasrec_torchrec.datasets import sources
from nasrec_torchrec.datasets.pieces import in_order
from nasrec_torchrec.datasets.sources import Source
from nasrec_torchrec.progress import progress_bar
from nasrec_torchrec.runs.files import remote_version
from nasrec_torchrec.runs.redaction import redact


@dataclass(frozen=True)
class Content:
    """What a source file holds; the checksum decides, the rest saves computing it again.

    Args:
        file: path, or URI without its secrets.
        bytes: size of the file.
        changed: time of the last change of a local file, in nanoseconds.
        sha256: checksum of the content, or, for a remote file, of what its file system reports about it.
    """

    file: str
    bytes: int
    changed: int
    sha256: str


def contents(files: Sequence[Source], known: Sequence[Any], threads: int) -> list[Content]:
    """Determines what the source files hold.

    Args:
        files: files to examine.
        known: earlier results as JSON; a file with the same size and time is not read again.
        threads: number of files that are read at the same time.

    Returns:
        The contents of the files, in their order.

    Raises:
        ValueError: If a file cannot be read.
    """
    earlier: dict[tuple[Any, ...], str] = {}
    for entry in known:
        if isinstance(entry, dict) and set(entry) == {"file", "bytes", "changed", "sha256"}:
            earlier[entry["file"], entry["bytes"], entry["changed"]] = str(entry["sha256"])

    def look(source: Source) -> Content:
        if (version := remote_version(source.uri)) is not None:
            # Its bytes are not read for a checksum alone.
            state = f"{source.uri} {source.size} {version}"
            return Content(redact(source.uri), source.size, 0, hashlib.sha256(state.encode()).hexdigest())
        changed = Path(source.uri).stat().st_mtime_ns
        key = (source.uri, source.size, changed)
        return Content(*key, earlier.get(key) or sources.checksum(source.uri))

    found: list[Content] = []
    with progress_bar(sum(file.size for file in files), "checksum", "B", scale=True) as bar:
        for content in in_order(threads, [partial(look, file) for file in files]):
            found.append(content)
            bar.update(content.bytes)
    first: dict[str, str] = {}
    for content in found:
        other = first.setdefault(content.sha256, content.file)
        if other != content.file and content.bytes:
            print(
                f"warning: {content.file} holds the same bytes as {other}: its rows are read twice, and may lie in "
                "train and in test",
                file=sys.stderr,
            )
    return found
