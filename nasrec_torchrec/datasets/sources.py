"""Raw files at any URI: text in several compressions, JSON lines, Parquet or Arrow, recognized by their content."""

import bz2
import gzip
import io
import lzma
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal, cast
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from nasrec_torchrec.datasets.checksums import sha256_of
from nasrec_torchrec.runs.files import identity, is_folder, matching, open_binary, walk
from nasrec_torchrec.runs.paths import to_path

_BLOCK = 1 << 20
_HEAD = 512
LONGEST_LINE = 64 << 20
_COMPRESSIONS: dict[str, tuple[bytes, tuple[str, ...], Callable[[IO[bytes]], IO[bytes]]]] = {
    "gzip": (rb"\x1f\x8b", (".gz", ".gzip"), lambda raw: cast(IO[bytes], gzip.GzipFile(fileobj=raw))),
    "bzip2": (rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)", (".bz2",), lambda raw: cast(IO[bytes], bz2.BZ2File(raw))),
    "xz": (rb"\xfd7zXZ\x00", (".xz",), lambda raw: cast(IO[bytes], lzma.open(raw))),  # noqa: SIM115  the caller closes
    "zstd": (rb"\x28\xb5\x2f\xfd", (".zst", ".zstd"), lambda raw: pa.CompressedInputStream(pa.PythonFile(raw), "zstd")),
}
_COMPRESSED = tuple(ending for _, endings, _ in _COMPRESSIONS.values() for ending in endings)
# Formats that are recognized so that the error can name them.
_OTHERS = {
    b"PK\x03\x04": "a zip archive (or a spreadsheet): unpack it",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it",
    b"\x04\x22\x4d\x18": "compressed by lz4: unpack it",
    b"\xff\x06\x00\x00sNaPpY": "compressed by snappy: unpack it",
    b"\xff\xfe": "UTF-16 text: convert it to UTF-8, for instance by iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "UTF-16 text: convert it to UTF-8, for instance by iconv -f UTF-16 -t UTF-8",
    b"FEA1": "a Feather file of version 1: write it as Parquet",
    b"Obj\x01": "an Avro file: write it as Parquet",
    b"SQLite format 3\x00": "an SQLite database: write the table as Parquet",
}
READ = "read are text and JSON lines, plain or compressed by gzip, bzip2, xz or zstd, Parquet and Arrow"
Kind = Literal["text", "json", "parquet", "arrow"]
_ARROW = (b"ARROW1\x00\x00", b"\xff\xff\xff\xff")
_JSON = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*(?:"(?:[^"\\]|\\.)*"\s*:|\})')
_JSON_ENDINGS = (".jsonl", ".ndjson", ".jsonlines")
# What a folder is searched for.
_ENDINGS = (".csv", ".tsv", ".txt", ".parquet", ".pq", ".parq", ".arrow", ".feather", ".ipc", *_JSON_ENDINGS)
# What Hive and Spark write for a missing value in the name of a folder.
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class Source:
    """A raw file, and what kind of file it is.

    Args:
        uri: path or URI.
        size: size of the stored file in bytes; 0 if it is not known.
        kind: ``text`` with delimiters, ``json`` for an object a line, ``parquet`` or ``arrow``.
        compression: compression of text, if any.
    """

    uri: str
    size: int
    kind: Kind
    compression: str | None = None

    @property
    def typed(self) -> bool:
        """Whether its columns have types, and its positions are rows; otherwise they are bytes of text."""
        return self.kind in ("parquet", "arrow")

    @property
    def partitions(self) -> dict[str, str | None]:
        """Columns that the names of its folders hold, such as ``dt=2026-11-01``; None stands for a missing value."""
        pairs = [part.partition("=") for part in re.split(r"[/\\]", self.uri)[:-1] if "=" in part.strip("=")]
        found = {unquote(name): unquote(value) for name, _, value in pairs if name}
        return {name: None if value in ("", _NO_VALUE) else value for name, value in found.items()}

    @property
    def name(self) -> str:
        return Path(self.uri).name


@dataclass(frozen=True)
class Piece:
    """Some consecutive rows of a raw file.

    Args:
        data: whole lines of text, or a table of Parquet rows.
        end: position of the next piece in the uncompressed file, in bytes of text or in rows of Parquet.
        first_line: first line of the piece in its file (for Parquet: the first row), counted from 1.
        progress: number of bytes of the stored file that were read so far.
    """

    data: bytes | pa.Table
    end: int
    first_line: int
    progress: int

    @property
    def next_line(self) -> int:
        rows = self.data.count(b"\n") if isinstance(self.data, bytes) else self.data.num_rows
        return self.first_line + rows


def find(patterns: Sequence[str]) -> list[Source]:
    """Finds the files that paths, URIs and patterns with ``*`` name, each once.

    Raises:
        ValueError: If nothing matches, or a file cannot be opened or is of an unsupported kind.
    """
    found: dict[Any, str] = {}
    for uri in expand(patterns):
        file = identity(uri)  # the rows of one file must not be in train and in test
        if file in found:
            print(f"{uri}: is named more than once and read once", file=sys.stderr)
        found.setdefault(file, uri)
    return [inspect(uri) for uri in found.values()]


def expand(patterns: Sequence[str]) -> list[str]:
    """Replaces paths and URIs with ``*`` by what they match, sorted so that day_2 precedes day_10.

    A folder stands for the files of data in it and in its folders, by the endings of their names.

    Raises:
        ValueError: If nothing matches.
    """
    found: list[str] = []
    for pattern in patterns:
        matches = matching(pattern) if "*" in pattern else [pattern]
        folders = [match for match in matches if is_folder(match)]
        for folder in folders:
            inside = _files_in(folder)
            if not inside:
                raise ValueError(f"{folder}: the folder holds no file of data; expected names that end in {_ENDINGS}")
            matches = [match for match in matches if match != folder] + inside
        if not matches:
            raise ValueError(f"{pattern}: no file matches")
        found += sorted(matches, key=lambda name: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", name)])
    return found


def _files_in(folder: str) -> list[str]:
    """The files of data below a folder; names that begin with a dot or an underscore are those of programs."""
    found = []
    for name in walk(to_path(folder)):
        parts = name.replace("\\", "/").split("/")
        plain = re.sub("(?:" + "|".join(map(re.escape, _COMPRESSED)) + ")$", "", parts[-1].lower())
        if plain.endswith(_ENDINGS) and not any(part.startswith((".", "_")) for part in parts):
            found.append(f"{folder.rstrip('/')}/{name}")
    return found


def inspect(uri: str) -> Source:
    """Recognizes the kind of a file by its first bytes.

    Raises:
        ValueError: If it cannot be opened, is of an unsupported kind, or is not of the kind that its name says.
    """
    with open_uri(uri) as file, reading(uri):
        head = read_fully(file, _HEAD)
        size = _size(file)
    ending = Path(uri).suffix.lower()
    if head.startswith(b"PAR1") or ending in (".parquet", ".pq", ".parq"):
        return Source(uri, size, "parquet")
    if head.startswith(_ARROW):
        return Source(uri, size, "arrow")
    named = next((name for name, (_, endings, _) in _COMPRESSIONS.items() if ending in endings), None)
    compression = next((name for name, (magic, _, _) in _COMPRESSIONS.items() if re.match(magic, head)), None)
    if named and compression is None:
        raise ValueError(f"{uri}: cannot be read: it is not compressed by {named}, as its name says")
    source = Source(uri, size, "text", compression)
    if compression:
        with text(source) as (plain, _), reading(uri):
            head = read_fully(plain, _HEAD)
    kind = next((what for magic, what in _OTHERS.items() if head.startswith(magic)), None)
    if head.startswith(b"PAR1") or head[257:262] == b"ustar":
        kind = f"{'Parquet' if head.startswith(b'PAR1') else 'a tar archive'} inside of {compression}: unpack it"
    if kind is None and head.count(0) * 4 > len(head):
        kind = "not text in UTF-8, for many of its bytes are zero"
    if re.match(rb"\s*\[\s*\{", head):
        kind = "a JSON array: write one object a line, for instance by jq -c '.[]'"
    if kind:
        raise ValueError(f"{uri}: cannot be read, it is {kind}; {READ}")
    name = re.sub("(?:" + "|".join(map(re.escape, _COMPRESSED)) + ")$", "", uri.lower())
    return replace(source, kind="json") if _JSON.match(head) or name.endswith(_JSON_ENDINGS) else source


@contextmanager
def open_uri(uri: str) -> Iterator[IO[bytes]]:
    """Opens a local file, or a remote one.

    Raises:
        ValueError: If it cannot be opened.
    """
    try:
        file = open_binary(to_path(uri))
    except Exception as error:  # file systems raise exceptions of their own
        raise ValueError(f"{uri}: cannot be opened: {error}") from None
    with file:
        yield file


@contextmanager
def text(source: Source) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Opens a text file; yields its uncompressed bytes, and the file as it lies there.

    Raises:
        ValueError: If it cannot be opened.
    """
    with open_uri(source.uri) as raw:
        if source.compression is None:
            yield raw, raw
            return
        with reading(source.uri):
            plain = _COMPRESSIONS[source.compression][2](raw)
        yield plain, raw


@contextmanager
def reading(uri: str, where: str = "") -> Iterator[None]:
    """Turns whatever a library raises while it reads a file into one line that names the file.

    Decompressors, file systems and networks raise exceptions of their own, not only OSError.
    """
    try:
        yield
    except ValueError as error:
        if not isinstance(error, pa.ArrowException):
            raise
        raise ValueError(f"{uri}: cannot be read{where}: {error}") from None
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(f"{uri}: cannot be read{where}: {error or type(error).__name__}") from None


def read_fully(file: IO[bytes], count: int) -> bytes:
    """Reads exactly ``count`` bytes, fewer only at the end, since a network file may return a few at a time."""
    parts, missing = [], count
    while missing > 0 and (block := file.read(missing)):
        parts.append(block)
        missing -= len(block)
    return b"".join(parts)


def skip(file: IO[bytes], count: int) -> None:
    """Skips bytes, by reading them if the file cannot seek."""
    try:
        file.seek(count)
    except Exception:  # whatever a stream says to that
        while count > 0 and (block := file.read(min(count, _BLOCK))):
            count -= len(block)


def checksum(uri: str) -> str:
    """Computes the SHA-256 checksum of a file's content.

    Raises:
        ValueError: If the file cannot be read.
    """
    with open_uri(uri) as file, reading(uri):
        return sha256_of(file)


def parquet_pieces(source: Source, piece_rows: int, start: int, columns: Sequence[str]) -> Iterator[Piece]:
    """Yields rows of a Parquet file.

    Args:
        source: file to read.
        piece_rows: largest number of rows in a piece.
        start: row to start at, which is the end of a piece.
        columns: columns to read.

    Raises:
        ValueError: If the file is damaged or columns are missing.
    """
    with open_uri(source.uri) as raw:
        with _parquet(source.uri):
            file = pq.ParquetFile(raw, page_checksum_verification=True)
            _require_columns(source.uri, columns, flat_names(file.schema_arrow))
        row = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if row + rows > start:
                with _parquet(source.uri, f" beyond row {row}"):
                    table = flat(file.read_row_group(group, columns=list(columns))).select(list(columns))
                for first in range(max(0, start - row), rows, piece_rows):
                    part = table.slice(first, piece_rows)
                    end = row + first + part.num_rows
                    yield Piece(part, end, row + first + 1, source.size * end // max(1, file.metadata.num_rows))
            row += rows


def parquet_schema(source: Source) -> pa.Schema:
    """Returns the columns of a Parquet file and their types.

    Raises:
        ValueError: If the file cannot be read.
    """
    with open_uri(source.uri) as raw, _parquet(source.uri):
        return flat(pq.ParquetFile(raw).schema_arrow.empty_table()).schema


def flat(table: pa.Table) -> pa.Table:
    """Returns a table in which the members of structs are columns: ``user.id`` for the member ``id`` of ``user``."""
    while any(pa.types.is_struct(kind) for kind in table.schema.types):
        table = table.flatten()
    return table


def flat_names(schema: pa.Schema) -> list[str]:
    """Returns the names of the columns that :func:`flat` makes of a table with this schema."""
    return flat(schema.empty_table()).column_names


def check_columns(source: Source, wanted: Sequence[str], found: Sequence[str]) -> None:
    """Raises ValueError if a file lacks a requested column, or has it twice."""
    _require_columns(source.uri, wanted, found)


def _require_columns(uri: str, wanted: Sequence[str], found: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(f"{uri}: missing columns {missing}; found {list(found)}")
    repeated = [name for name in wanted if list(found).count(name) > 1]
    if repeated:
        raise ValueError(f"{uri}: columns named more than once: {repeated}")


@contextmanager
def _parquet(uri: str, where: str = "") -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{uri}: not a readable Parquet file{where}: {error}") from None


def _size(file: IO[bytes]) -> int:
    try:
        return file.seek(0, io.SEEK_END)
    except Exception:  # a stream
        return int(getattr(file, "size", None) or 0)
