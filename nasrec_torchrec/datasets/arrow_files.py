"""Arrow's own files: Feather and IPC files, and IPC streams, as Hugging Face ``datasets`` saves them."""

from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np
import pyarrow as pa

from nasrec_torchrec.datasets.sources import Piece, Source, check_columns, flat, open_uri, reading

FILE, STREAM = b"ARROW1\x00\x00", b"\xff\xff\xff\xff"


def schema(source: Source) -> pa.Schema:
    """Returns the columns of a file and their types.

    Raises:
        ValueError: If the file cannot be read.
    """
    with open_uri(source.uri) as raw, reading(source.uri):
        return flat(_open(raw).schema.empty_table()).schema


def pieces(source: Source, piece_rows: int, start: int, columns: Sequence[str]) -> Iterator[Piece]:
    """Yields rows of a file.

    Args:
        source: file to read.
        piece_rows: largest number of rows in a piece.
        start: row to start at, which is the end of a piece.
        columns: columns to read.

    Raises:
        ValueError: If the file is damaged or columns are missing.
    """
    with open_uri(source.uri) as raw:
        row = 0
        with reading(source.uri):
            names = _open(raw).schema.names
            check_columns(source, columns, schema(source).names)
            wanted = [names.index(name) for name in names if any(_is_of(column, name) for column in columns)]
            raw.seek(0)
            batches = _batches(_open(raw, wanted))
        while True:
            with reading(source.uri, f" beyond row {row}"):
                batch = next(batches, None)
            if batch is None:
                return
            table = flat(pa.Table.from_batches([batch])).select(list(columns))
            for first in range(max(0, start - row), batch.num_rows, piece_rows):
                part = table.slice(first, piece_rows)
                end = row + first + part.num_rows
                yield Piece(part, end, row + first + 1, raw.tell())
            row += batch.num_rows


def _is_of(column: str, name: str) -> bool:
    """Whether a column is one of a file's, or a member of it."""
    return column == name or column.startswith(f"{name}.")


def sample(source: Source, rows: int, places: int) -> tuple[pa.Table, int]:
    """Returns some rows from places all over a file, and how many it has; of a stream, the first ones.

    Raises:
        ValueError: If the file cannot be read.
    """
    with open_uri(source.uri) as raw, reading(source.uri):
        opened = _open(raw)
        if isinstance(opened, pa.RecordBatchStreamReader):
            return _head(opened, rows)
        total = sum(opened.get_batch(number).num_rows for number in range(opened.num_record_batches))
        count = opened.num_record_batches if total <= rows else min(opened.num_record_batches, places)
        chosen = np.unique(np.linspace(0, max(0, opened.num_record_batches - 1), count, dtype=int)).tolist()
        each = total if total <= rows else max(1, rows // max(1, len(chosen)))
        batches = [opened.get_batch(number).slice(0, each) for number in chosen]
        return pa.Table.from_batches(batches, opened.schema), total


def _head(opened: pa.RecordBatchStreamReader, rows: int) -> tuple[pa.Table, int]:
    taken, total = [], 0
    for batch in opened:
        if total < rows:
            taken.append(batch.slice(0, rows - total))
        total += batch.num_rows
    return pa.Table.from_batches(taken, opened.schema), total


def _open(raw: IO[bytes], fields: list[int] | None = None) -> "pa.RecordBatchFileReader | pa.RecordBatchStreamReader":
    options = pa.ipc.IpcReadOptions(included_fields=fields)
    head = raw.read(len(FILE))
    raw.seek(0)
    return pa.ipc.open_file(raw, options=options) if head == FILE else pa.ipc.open_stream(raw, options=options)


def _batches(opened: "pa.RecordBatchFileReader | pa.RecordBatchStreamReader") -> Iterator[pa.RecordBatch]:
    if isinstance(opened, pa.RecordBatchStreamReader):
        yield from opened
        return
    for number in range(opened.num_record_batches):
        yield opened.get_batch(number)
