"""What changed between two packages, as one small file: a model that was trained further is shipped without the rest.

The rows of tables that were not trained again, and the compiled code of an unchanged architecture, are the same bytes
in both packages. A delta holds the bytes that differ, and where the others are copied from.
"""

import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np

from nasrec_torchrec.inference.predictor import MANIFEST, PACKAGE, Predictor, is_inside, read_manifest, version_of
from nasrec_torchrec.runs.files import atomic_path, local_copy, local_folder

FORMAT = "nasrec-torchrec/delta/1"
_DOCUMENT, _DATA = "delta.json", "data"
# Bytes that are copied or written together: at most a few rows of a table.
_BLOCK = 64
# Bytes that are compared, copied or written at a time.
_PIECE = 2**24
_LARGEST_DOCUMENT = 2**30


def write_delta(base: Path, package: Path, out: Path) -> None:
    """Writes what turns one package into another.

    Args:
        base: folder of the package that services have.
        package: local folder of the one that they are to get.
        out: file to write.

    Raises:
        ValueError: If one of the folders is no package of this version.
    """
    with local_folder(base) as folder:
        old, new = read_manifest(folder), read_manifest(package)
        files: dict[str, list[list[Any]]] = {}
        with atomic_path(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            with archive.open(_DATA, "w", force_zip64=True) as data:
                # The manifest's own checksum is of its content, not of its bytes.
                for name, known in new["sha256"].items():
                    same = name != MANIFEST and old["sha256"].get(name) == known
                    copied = [["base", name, 0, (package / name).stat().st_size]]
                    files[name] = copied if same else list(_changes(folder, package, name, data))
            document = {"format": FORMAT, "base": version_of(old), "version": version_of(new), "files": files}
            archive.writestr(_DOCUMENT, json.dumps(document))


def apply_delta(base: Path, delta: Path, folder: Path) -> Predictor:
    """Builds the package that a delta leads to.

    Args:
        base: local folder of the package that the delta changes.
        delta: file that :func:`write_delta` wrote.
        folder: empty local folder for the new package.

    Returns:
        Predictor: The package, loaded and verified.

    Raises:
        ValueError: If the file is no delta, or is one for another package.
    """
    manifest = read_manifest(base)
    version, known = version_of(manifest), manifest["sha256"]
    try:
        with zipfile.ZipFile(local_copy(delta)) as archive:
            if archive.getinfo(_DOCUMENT).file_size > _LARGEST_DOCUMENT:
                raise ValueError("its description is too large")
            document = json.loads(archive.read(_DOCUMENT))
            if not all(map(is_inside, document["files"])):
                raise ValueError("it names files outside of a package")
            if document["format"] != FORMAT:
                raise ValueError(f"expected the format {FORMAT}, found {document['format']!r:.80}")
            if document["base"] != version:
                raise ValueError(
                    f"it changes version {document['base']} of a package, found version {version} in {base}"
                )
            with archive.open(_DATA) as data:
                for name, segments in document["files"].items():
                    _rebuild(base, known, folder / name, segments, data)
                if data.read(1):  # at its end the archive compares it with a checksum
                    raise ValueError("it holds more than it describes")
        predictor = Predictor(folder)
        if predictor.version != document["version"]:
            raise ValueError(f"it leads to version {predictor.version}, it says {document['version']}")
    except (ValueError, KeyError, TypeError, OSError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        why = str(error) if isinstance(error, (ValueError, OSError)) else f"not a delta of packages: {error!r}"
        raise ValueError(f"{delta}: {why}") from None
    return predictor


def _changes(base: Path, package: Path, name: str, data: IO[bytes]) -> Iterator[list[Any]]:
    """Yields the segments of a file in their order, and writes the new ones of them to the data.

    A segment is ``["base", file, offset, bytes]`` or ``["data", bytes]``.
    """
    new = np.memmap(package / name, np.uint8, "r")
    old = np.memmap(base / name, np.uint8, "r") if (base / name).is_file() else new[:0]
    aligned = _aligned_members(base, package) if name == PACKAGE else []
    done = 0
    for begin, origin, count in aligned or [(0, 0, min(len(new), len(old)))]:
        yield from _new(new, done, begin, data)
        for first in range(0, count, _PIECE):
            some = slice(first, min(count, first + _PIECE))
            ours, theirs = new[begin:][some], old[origin:][some]
            for same, start, stop in _runs(ours, theirs):
                if same:
                    yield ["base", name, origin + first + start, stop - start]
                else:
                    yield from _new(ours, start, stop, data)
        done = begin + count
    yield from _new(new, done, len(new), data)


def _new(values: np.ndarray, start: int, stop: int, data: IO[bytes]) -> Iterator[list[Any]]:
    if stop > start:
        data.write(values[start:stop].tobytes())
        yield ["data", stop - start]


def _runs(ours: np.ndarray, theirs: np.ndarray) -> Iterator[tuple[bool, int, int]]:
    """Yields whether the bytes from one place to the next are the same, in runs of whole blocks."""
    starts = np.arange(0, len(ours), _BLOCK)
    differs = np.add.reduceat(ours != theirs, starts, dtype=np.int64) > 0
    edges = [0, *(np.flatnonzero(differs[1:] != differs[:-1]) + 1), len(starts)]
    for first, last in pairwise(edges):
        yield not differs[first], int(starts[first]), int(min(last * _BLOCK, len(ours)))


def _aligned_members(base: Path, package: Path) -> list[tuple[int, int, int]]:
    """Returns the places in the new and in the old archive, and the bytes, of members that are alike but for values.

    Their names contain checksums of the code, so they are known by their endings and sizes.
    """
    old: dict[tuple[str, int], int] = {}
    for kind, size, place in _members(base / PACKAGE):
        old.setdefault((kind, size), place)
    return [(place, old[kind, size], size) for kind, size, place in _members(package / PACKAGE) if (kind, size) in old]


def _members(file: Path) -> Iterator[tuple[str, int, int]]:
    """Yields ending, bytes and place of the uncompressed members of an archive, in the order of their places."""
    with zipfile.ZipFile(file) as archive, file.open("rb") as opened:
        for member in sorted(archive.infolist(), key=lambda member: member.header_offset):
            if member.compress_type == zipfile.ZIP_STORED and member.file_size:
                opened.seek(member.header_offset + 26)
                name, extra = np.frombuffer(opened.read(4), "<u2").tolist()
                kind = member.filename.rpartition("/")[2].partition(".")[2] or member.filename
                yield kind, member.file_size, member.header_offset + 30 + name + extra


def _rebuild(
    base: Path, known: Mapping[str, str], target: Path, segments: Iterable[Sequence[Any]], data: IO[bytes]
) -> None:
    """Writes a file from its segments; what is copied comes from files that the manifest of the base has."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as written:
        for kind, *where in segments:
            if kind == "data":
                _copy(data, written, where[0])
                continue
            origin, offset, count = where
            if origin not in known:
                raise ValueError(f"expected a file of the package {base}, found {origin!r:.80}")
            with (base / origin).open("rb") as opened:
                opened.seek(offset)
                _copy(opened, written, count)


def _copy(source: IO[bytes], target: IO[bytes], count: int) -> None:
    while count > 0:
        piece = source.read(min(count, _PIECE))
        if not piece:
            raise ValueError("it ends early")
        target.write(piece)
        count -= len(piece)
