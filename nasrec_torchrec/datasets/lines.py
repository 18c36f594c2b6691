"""Parsing lines of text files into columns: which lines are rows, and what is wrong with the others."""

import re
from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv

from nasrec_torchrec.datasets.config import TextFormat
from nasrec_torchrec.datasets.sources import LONGEST_LINE, Piece, Source, read_fully, reading, skip, text

# Why a line with a quote is no row, such as one that holds the beginning of a value that spans lines.
QUOTE = "a quote inside of a value, or one that is not closed on its line"
_BOM = b"\xef\xbb\xbf"
# Largest number of lines that a misplaced quote can affect.
_LONGEST_VALUE = 100
# What divides columns in files that people have; Hive writes the last one.
_DELIMITERS = (",", "\t", ";", "|", "\x01")


def header(source: Source, text_format: TextFormat) -> tuple[tuple[str, ...], int]:
    """Returns the names of the columns of a text file, and the size of its header in bytes.

    Raises:
        ValueError: If the first line is not a header.
    """
    if text_format.columns:
        return text_format.columns, 0
    line = b""
    with text(source) as (file, _), reading(source.uri):
        while b"\n" not in line and len(line) < LONGEST_LINE and (block := read_fully(file, 1 << 16)):
            line += block
    line = line[: line.find(b"\n") + 1] or line
    where = f"{source.uri}: line 1"
    if b"\r" in line.rstrip(b"\r\n"):
        raise ValueError(f"{where}: lines end in carriage returns alone, as old Macs wrote them; expected newlines")
    try:
        quote = '"' if text_format.quoting else False
        options = pcsv.ParseOptions(delimiter=text_format.delimiter, quote_char=quote)
        names = pcsv.read_csv(pa.BufferReader(line or b"\n"), parse_options=options).column_names
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"{where}: expected the names of the columns: {error}") from None
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{where}: columns named more than once: {repeated}")
    return tuple(names), len(line)


def first_lines(source: Source, count: int, longest: int = 1 << 20) -> list[bytes]:
    """Returns the first lines of a text file without their line ends, at most ``longest`` bytes of them."""
    with text(source) as (file, _), reading(source.uri):
        head = read_fully(file, longest)
    found = head.removeprefix(_BOM).split(b"\n")
    # The last one may be cut off.
    whole = found[:-1] if len(found) > 1 else found
    return [line.rstrip(b"\r") for line in whole[:count]]


def guess_delimiter(lines: Sequence[bytes]) -> str | None:
    """Finds the character that divides lines into the same number of columns, at least two.

    Args:
        lines: some lines of a file.

    Returns:
        The delimiter, or None if nothing divides nine in ten lines alike.
    """
    plain = [re.sub(rb'"(?:[^"]|"")*"', b"", line) for line in lines if line.strip()]
    best: tuple[int, str] | None = None
    for delimiter in _DELIMITERS:
        counts = [line.count(delimiter.encode()) for line in plain]
        usual = max(set(counts), key=counts.count, default=0)
        if usual and counts.count(usual) >= 0.9 * len(counts) and (best is None or usual > best[0]):
            best = usual, delimiter
    return best[1] if best else None


def text_pieces(source: Source, piece_bytes: int, start: int, first_line: int) -> Iterator[Piece]:
    """Yields whole lines of a text file, about ``piece_bytes`` at a time.

    Args:
        source: file to read.
        piece_bytes: bytes of uncompressed text in a piece.
        start: byte of the uncompressed text at which to start; 0 includes a header.
        first_line: number of the line that starts there.

    Raises:
        ValueError: If an archive is damaged, or a line has no end.
    """
    with text(source) as (file, raw):
        with reading(source.uri):
            skip(file, start)
        rest = b""
        while True:
            with reading(source.uri, f" beyond line {first_line}"):
                block = read_fully(file, max(1, piece_bytes - len(rest)))
                progress = _position(raw)
            data = rest + block
            cut = data.rfind(b"\n") + 1 if block else len(data)
            if cut == 0 and block:
                if len(data) > LONGEST_LINE:
                    raise ValueError(f"{source.uri}: line {first_line}: no end within {LONGEST_LINE >> 20} MiB")
                rest, piece_bytes = data, piece_bytes + len(block)
                continue
            data, rest = data[:cut], data[cut:]
            if data:
                start += len(data)
                piece = Piece(data, start, first_line, progress)
                yield piece
                first_line = piece.next_line
            if not block:
                return


def _position(raw: IO[bytes]) -> int:
    try:
        return raw.tell()
    except Exception:  # a stream that does not say
        return 0


def read_lines(
    piece: Piece, names: Sequence[str], wanted: Sequence[str], text_format: TextFormat
) -> tuple[pa.Table, np.ndarray, dict[int, str]]:
    """Splits lines into columns of bytes.

    Returns:
        tuple: The requested columns, null where missing; the line number of each row; and the reason of each rejected
        line.
    """
    data = piece.data
    assert isinstance(data, bytes)
    if piece.first_line == 1:
        data = data.removeprefix(_BOM)
    if not data.endswith(b"\n"):
        data += b"\n"
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n")
    numbers = np.arange(piece.first_line, piece.first_line + data.count(b"\n"))
    rejected: dict[int, str] = {}

    def without(bad: np.ndarray) -> tuple[bytes, np.ndarray]:
        keep = np.ones(len(numbers), bool)
        keep[bad] = False
        return b"".join(_lines(data).filter(pa.array(keep)).to_pylist()), numbers[keep]

    # An empty line is no row, unless a row has but one column, whose value may be missing.
    if len(names) > 1 and (b"\n\n" in data or b"\n " in data or data[:1] in (b"\n", b" ")):
        blank = pc.match_substring_regex(_lines(data), "^ *\n$").to_numpy(zero_copy_only=False)
        if blank.any():
            data, numbers = without(np.flatnonzero(blank))
    # Arrow would take the lines after such a one for a part of the same row, or one line for two rows.
    bad: dict[int, str] = {}
    if text_format.quoting and b'"' in data:
        bad = _badly_quoted(_lines(data), piece.first_line > 1, re.escape(text_format.delimiter))
    if b"\r" in data:
        returns = pc.match_substring(_lines(data), b"\r").to_numpy(zero_copy_only=False)
        bad |= dict.fromkeys(map(int, np.flatnonzero(returns)), "a carriage return inside of the line")
    if bad:
        rejected |= {int(numbers[index]): reason for index, reason in bad.items()}
        data, numbers = without(np.array(list(bad)))
    try:
        table = _columns(data, names, wanted, text_format)
    except pa.ArrowInvalid:
        # Arrow names one such line at most.
        bad = _badly_divided(_lines(data), len(names), text_format)
        rejected |= {int(numbers[index]): reason for index, reason in bad.items()}
        data, numbers = without(np.array(list(bad), int))
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
    """Returns the lines with their line ends."""
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1
    offsets = pa.py_buffer(np.concatenate([[0], ends]).astype(np.int32))
    return pa.Array.from_buffers(pa.binary(), len(ends), [None, offsets, pa.py_buffer(data)])


def _badly_divided(lines: pa.Array, columns: int, text_format: TextFormat) -> dict[int, str]:
    """Returns the lines with another number of columns, as index and reason."""
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
    found = dict.fromkeys(map(int, suspects), QUOTE)
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
