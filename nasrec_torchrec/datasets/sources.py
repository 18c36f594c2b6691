"""Raw files as a sequence of pieces: any URI, plain or gzip, delimited text or Parquet."""

import glob
import gzip
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from nasrec_torchrec.datasets.config import TextFormat
from nasrec_torchrec.runs.paths import to_path

_LONGEST_LINE = 64 << 20
# Lines that a misplaced quote can at most take with it.
_LONGEST_VALUE = 100


@dataclass(frozen=True)
class Piece:
    """Some successive rows of a raw file.

    Args:
        data: whole lines of text, or a table of Parquet rows.
        end: position of the next piece in the uncompressed file: bytes of text, rows of Parquet.
        first_line: of the piece in its file, counted from 1; of Parquet the first row, counted from 1.
        progress: bytes of the file read so far, as it lies there.
    """

    data: bytes | pa.Table
    end: int
    first_line: int
    progress: int


def expand(patterns: Sequence[str]) -> list[str]:
    """Paths and URIs with ``*`` replaced by what they match, sorted so that day_2 precedes day_10.

    Raises:
        ValueError: when nothing matches.
    """
    found: list[str] = []
    for pattern in patterns:
        if "*" not in pattern:
            matches = [pattern]
        elif "://" in pattern:
            start, star, rest = pattern.partition("*")
            folder, _, name = start.rpartition("/")
            matches = [str(file) for file in to_path(folder).glob(f"{name}{star}{rest}")]
        else:
            matches = glob.glob(pattern)
        if not matches:
            raise ValueError(f"{pattern}: no file matches")
        found += sorted(matches, key=lambda name: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", name)])
    return found


def is_parquet(uri: str) -> bool:
    return uri.endswith((".parquet", ".pq"))


@contextmanager
def open_uri(uri: str) -> Iterator[IO[bytes]]:
    """Opens a local file, or one that the path manager can reach.

    Raises:
        ValueError: when it cannot be opened.
    """
    try:
        file = to_path(uri).open("rb")
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"{uri}: cannot be opened: {error}") from None
    with file:
        yield file


def _plain(raw: IO[bytes], uri: str) -> IO[bytes]:
    return gzip.GzipFile(fileobj=raw) if uri.endswith(".gz") else raw  # type: ignore[return-value]


def size_of(uri: str) -> int:
    """Bytes of a file as it lies there."""
    with open_uri(uri) as file:
        return file.seek(0, io.SEEK_END)


def text_pieces(uri: str, piece_bytes: int, start: int, first_line: int) -> Iterator[Piece]:
    """Whole lines of a plain or gzip file, about ``piece_bytes`` at a time.

    Args:
        uri: ends in ``.gz`` when compressed.
        piece_bytes: of uncompressed text.
        start: byte of the uncompressed text to start at; 0 includes a header.
        first_line: number of the line that starts there.

    Raises:
        ValueError: for a damaged archive, or a line that has no end.
    """
    with open_uri(uri) as raw:
        text = _plain(raw, uri)
        try:
            text.seek(start)
            rest = b""
            while True:
                block = text.read(max(1, piece_bytes - len(rest)))
                data = rest + block
                cut = data.rfind(b"\n") + 1 if block else len(data)
                if cut == 0 and block:
                    if len(data) > _LONGEST_LINE:
                        raise ValueError(f"{uri}: line {first_line}: no end within {_LONGEST_LINE >> 20} MiB")
                    rest, piece_bytes = data, piece_bytes + len(block)
                    continue
                data, rest = data[:cut], data[cut:]
                if data:
                    start += len(data)
                    yield Piece(data, start, first_line, raw.tell())
                    first_line += data.count(b"\n")
                if not block:
                    return
        except (EOFError, OSError) as error:
            raise ValueError(f"{uri}: cannot be read beyond line {first_line}: {error}") from None


def parquet_pieces(uri: str, piece_rows: int, start: int, columns: Sequence[str]) -> Iterator[Piece]:
    """Rows of a Parquet file.

    Args:
        uri: of the file.
        piece_rows: rows of a piece, at most.
        start: row to start at, a piece's end.
        columns: to read.

    Raises:
        ValueError: for a damaged file or missing columns.
    """
    with open_uri(uri) as raw:
        try:
            file = pq.ParquetFile(raw)
            _require_columns(uri, columns, file.schema_arrow.names)
            row = 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if row + rows > start:
                    table = file.read_row_group(group, columns=list(columns))
                    for first in range(max(0, start - row), rows, piece_rows):
                        part = table.slice(first, piece_rows)
                        end = row + first + part.num_rows
                        yield Piece(part, end, row + first + 1, raw.tell())
                row += rows
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{uri}: not a readable Parquet file: {error}") from None


def header(uri: str, text_format: TextFormat) -> tuple[tuple[str, ...], int]:
    """Names of the columns of a text file, and the bytes that the header takes.

    Raises:
        ValueError: when the first line is not a header.
    """
    if text_format.columns:
        return text_format.columns, 0
    with open_uri(uri) as raw:
        text = _plain(raw, uri)
        try:
            line = text.readline(_LONGEST_LINE)
        except (EOFError, OSError) as error:
            raise ValueError(f"{uri}: cannot be read: {error}") from None
    try:
        quote = '"' if text_format.quoting else False
        options = pcsv.ParseOptions(delimiter=text_format.delimiter, quote_char=quote)
        names = pcsv.read_csv(pa.BufferReader(line or b"\n"), parse_options=options).column_names
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"{uri}: line 1: expected the names of the columns: {error}") from None
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{uri}: line 1: columns named more than once: {repeated}")
    return tuple(names), len(line)


def read_lines(
    piece: Piece, names: Sequence[str], wanted: Sequence[str], text_format: TextFormat
) -> tuple[pa.Table, np.ndarray, dict[int, str]]:
    """Splits lines into columns of bytes.

    Returns:
        tuple: the wanted columns, null where missing; the line number of each row; and per rejected line the reason.
    """
    data = piece.data
    assert isinstance(data, bytes)
    if not data.endswith(b"\n"):
        data += b"\n"
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n")
    numbers = np.arange(piece.first_line, piece.first_line + data.count(b"\n"))
    rejected: dict[int, str] = {}

    def without(bad: dict[int, str]) -> tuple[bytes, np.ndarray]:
        rejected.update((int(numbers[index]), reason) for index, reason in bad.items())
        lines = data.split(b"\n")[:-1]
        kept = b"".join(line + b"\n" for index, line in enumerate(lines) if index not in bad)
        return kept, np.delete(numbers, list(bad))

    # Arrow would take the lines after such a one for a part of the same row, or one line for two rows.
    bad: dict[int, str] = {}
    if text_format.quoting and b'"' in data:
        bad = _badly_quoted(_lines(data), piece.first_line > 1, re.escape(text_format.delimiter))
    if b"\r" in data:
        returns = pc.match_substring(_lines(data), b"\r").to_numpy(zero_copy_only=False)
        bad |= dict.fromkeys(map(int, np.flatnonzero(returns)), "a carriage return inside of the line")
    if bad:
        data, numbers = without(bad)
    try:
        table = _columns(data, names, wanted, text_format)
    except pa.ArrowInvalid:
        # Arrow names one such line at most.
        data, numbers = without(_badly_divided(_lines(data), len(names), text_format))
        table = _columns(data, names, wanted, text_format)
    assert table.num_rows == len(numbers)
    return table, numbers, rejected


def _columns(data: bytes, names: Sequence[str], wanted: Sequence[str], text_format: TextFormat) -> pa.Table:
    if not data:
        return pa.table({name: pa.array([], pa.binary()) for name in wanted})
    return pcsv.read_csv(
        pa.BufferReader(data),
        read_options=pcsv.ReadOptions(column_names=list(names), use_threads=False, block_size=len(data) + 1),
        parse_options=pcsv.ParseOptions(
            delimiter=text_format.delimiter,
            quote_char='"' if text_format.quoting else False,
            ignore_empty_lines=False,
        ),
        convert_options=pcsv.ConvertOptions(
            column_types={name: pa.binary() for name in wanted},
            include_columns=list(wanted),
            null_values=list(text_format.missing),
            strings_can_be_null=True,
            check_utf8=False,
        ),
    )


def _lines(data: bytes) -> pa.Array:
    """Lines with their ends."""
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1
    offsets = pa.py_buffer(np.concatenate([[0], ends]).astype(np.int32))
    return pa.Array.from_buffers(pa.binary(), len(ends), [None, offsets, pa.py_buffer(data)])


def _badly_divided(lines: pa.Array, columns: int, text_format: TextFormat) -> dict[int, str]:
    """Lines with another number of columns, as index and reason."""
    if text_format.quoting:
        lines = pc.replace_substring_regex(lines, '"(?:[^"]|"")*"', "")
    found = pc.count_substring(lines, text_format.delimiter).to_numpy(zero_copy_only=False) + 1
    wrong = np.flatnonzero(found != columns)
    return {int(index): f"expected {columns} columns, found {found[index]}" for index in wrong}


def _badly_quoted(lines: pa.Array, continued: bool, delimiter: str) -> dict[int, str]:
    """Lines with a misplaced quote, and all lines of a quoted value that goes over several of them."""
    inside = '(?:[^"]|"")*'
    value = f'(?:"{inside}"|[^"{delimiter}]*)'

    def matches(pattern: str, some: pa.Array) -> np.ndarray:
        return pc.match_substring_regex(some, f"^(?s:{pattern})\n$").to_numpy(zero_copy_only=False)

    suspects = np.flatnonzero(~matches(f"{value}(?:{delimiter}{value})*", lines))
    found = dict.fromkeys(map(int, suspects), "a quote inside of a value, or one that is not closed on its line")
    # A line inside of such a value can look like a row, and must not become one. Where values that go over several
    # lines are the only fault, the lines with an odd number of quotes open and close them in turn.
    odd = pc.count_substring(lines.take(pa.array(suspects)), '"').to_numpy(zero_copy_only=False) % 2 == 1
    suspects = suspects[odd]
    some = lines.take(pa.array(suspects))
    opens = matches(f'(?:{value}{delimiter})*"{inside}', some)
    closes = matches(f'{inside}"(?:{delimiter}{value})*', some)
    first: int | None = 0 if continued else None  # of the lines that may lie inside of a value
    for index, opening, closing in zip(map(int, suspects), opens, closes, strict=True):
        if closing and first is not None and not (first == 0 and opening):
            _span(found, first, index)
            first = None
        else:
            first = index + 1 if opening else None
    if first:
        _span(found, first, len(lines))
    return found


def _span(found: dict[int, str], first: int, last: int) -> None:
    if last - first <= _LONGEST_VALUE:
        for index in range(first, last):
            found[index] = "inside of a quoted value that goes over several lines"


def _require_columns(uri: str, wanted: Sequence[str], found: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(f"{uri}: missing columns {missing}; found {list(found)}")


def check_source(uri: str, wanted: Sequence[str], text_format: TextFormat) -> None:
    """Raises ValueError for a file that cannot be opened or lacks a wanted column."""
    if not is_parquet(uri):
        _require_columns(uri, wanted, header(uri, text_format)[0])
        return
    with open_uri(uri) as raw:
        try:
            names = pq.ParquetFile(raw).schema_arrow.names
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{uri}: not a readable Parquet file: {error}") from None
    _require_columns(uri, wanted, names)
