"""Processing raw files piece by piece: in order, on several threads, resumable, with rejected rows set aside.

Preparation and scoring share this. They decide what a piece becomes: they say which pieces are finished, and write one.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nasrec_torchrec.datasets import arrow_files, json_lines, lines, sources, values
from nasrec_torchrec.datasets.config import TextFormat
from nasrec_torchrec.datasets.diagnosis import diagnosis
from nasrec_torchrec.datasets.sources import Piece, Source
from nasrec_torchrec.progress import progress_bar
from nasrec_torchrec.runs.files import atomic_path, write_text
from nasrec_torchrec.runs.redaction import redact

_T = TypeVar("_T")


@dataclass(frozen=True)
class Record:
    """What is known of a finished piece.

    Args:
        file: index of its source file.
        end: position of the next piece in that file, see :class:`~nasrec_torchrec.datasets.sources.Piece`.
        next_line: line or row of the file that the next piece begins with.
        rows: number of rows that were read.
        rejected: number of rows that could not be read.
        progress: number of bytes of the stored file that were read so far.
    """

    file: int
    end: int
    next_line: int
    rows: int
    rejected: int
    progress: int = 0

    def to_json(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Any, where: object) -> "Record":
        """Restores what :meth:`to_json` returned.

        Raises:
            ValueError: If the values are anything else.
        """
        names = {entry.name for entry in fields(cls)}
        if not isinstance(document, dict) or not all(type(document.get(name)) is int for name in names):
            raise ValueError(f"{where}: expected the record of a piece, with the integers {sorted(names)}")
        return cls(**{name: document[name] for name in names})


@dataclass(frozen=True)
class Rows:
    """The rows of a piece as they are in the file.

    Args:
        table: raw columns.
        lines: line ``(N,)`` of each row in its file (for Parquet: its row), counted from 1.
        rejects: reasons why lines are not rows, by line.
        where: name of the piece in messages.
    """

    table: pa.Table
    lines: np.ndarray
    rejects: dict[int, str] = field(default_factory=dict)
    where: str = ""


@dataclass(frozen=True)
class Reading:
    """How files become rows.

    Args:
        files: files in order.
        wanted: function that selects the columns to read from those that a file has.
        text_format: format of text files.
        piece_mib: size of a piece, in MiB of text or in units of 8,192 Parquet rows.
    """

    files: Sequence[Source]
    wanted: Callable[[Sequence[str]], list[str]]
    text_format: TextFormat
    piece_mib: int

    def header(self, source: Source) -> tuple[tuple[str, ...], int]:
        """Returns the names of the columns of a file, and the size of its header in bytes.

        Raises:
            ValueError: If the file cannot be read, or lacks a requested column.
        """
        match source.kind:
            case "parquet" | "arrow":
                names, start = tuple(typed_schema(source).names), 0
            case "json":
                names, start = json_lines.keys(source), 0
            case _:
                names, start = lines.header(source, self.text_format)
        names += tuple(FolderColumn(name) for name in source.partitions if name not in names)
        try:
            sources.check_columns(source, self.wanted(names), names)
        except ValueError as error:
            if source.kind != "text":
                raise
            raise ValueError(f"{error}; {diagnosis(source, self.text_format)}") from None
        return names, start

    def pieces(self, source: Source, names: Sequence[str], start: int, line: int) -> Iterator[Piece]:
        """Yields the rows of a file from a position on; ``names`` are those that :meth:`header` returned."""
        if source.typed:
            read = sources.parquet_pieces if source.kind == "parquet" else arrow_files.pieces
            # About as many rows as lines of 128 bytes in a piece of text.
            return read(source, self.piece_mib << 13, start, _own(self.wanted(names), names))
        return lines.text_pieces(source, self.piece_mib << 20, start, line)

    def beginning(self, source: Source, start: int, size: int) -> Iterator[Piece]:
        """Yields the rows of a text file in pieces of ``size`` bytes."""
        return lines.text_pieces(source, size, start, 2 if start else 1)

    def rows(self, piece: Piece, source: Source, names: Sequence[str]) -> Rows:
        """Splits a piece into rows.

        Raises:
            ValueError: If it cannot be split. The message names the file and the line.
        """
        where = f"{source.uri}: {'row' if source.typed else 'line'} {piece.first_line} and after"
        wanted = self.wanted(names)
        own = _own(wanted, names)
        rejects: dict[int, str] = {}
        if not isinstance(piece.data, bytes):
            table = _without_marks(piece.data, self.text_format.missing)
            numbers = np.arange(piece.first_line, piece.next_line)
        else:
            try:
                if source.kind == "json":
                    table, numbers, rejects = json_lines.read_objects(piece, own, self.text_format)
                else:
                    table, numbers, rejects = lines.read_lines(piece, _own(names, names), own, self.text_format)
            except (ValueError, pa.ArrowException) as error:
                raise ValueError(f"{where}: {error}") from None
        if len(own) < len(wanted):
            table = with_partitions(table, source)
        return Rows(table, numbers, rejects, where)


def typed_schema(source: Source) -> pa.Schema:
    """Returns the columns of a file that has types, and these.

    Raises:
        ValueError: If the file cannot be read.
    """
    return sources.parquet_schema(source) if source.kind == "parquet" else arrow_files.schema(source)


def _without_marks(table: pa.Table, marks: Sequence[str]) -> pa.Table:
    """Returns rows of a typed file in which a text that stands for a missing value is missing, as in a file of text."""
    for place, (name, kind) in enumerate(zip(table.column_names, table.schema.types, strict=True)):
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            texts = values.plain(table.column(place))
            marked = pc.is_in(texts, pa.array(marks, texts.type))
            if pc.any(marked).as_py():
                missing = pc.if_else(marked, pa.scalar(None, texts.type), texts)
                table = table.set_column(place, name, missing)
    return table


class FolderColumn(str):
    """The name of a column that the file does not have, but the names of its folders."""


def _own(wanted: Sequence[str], names: Sequence[str]) -> list[str]:
    """Those of the wanted columns that are in the file itself."""
    folders = {name for name in names if isinstance(name, FolderColumn)}
    return [name for name in wanted if name not in folders]


def with_partitions(table: pa.Table, source: Source) -> pa.Table:
    """Adds the columns that the names of a file's folders hold, if the file does not have them."""
    for name, value in source.partitions.items():
        if name not in table.column_names:
            table = table.append_column(name, pa.array([value] * table.num_rows, pa.string()))
    return table


def work_off(
    reading: Reading,
    finished: Callable[[int], Record | None],
    write: Callable[[int, Piece, Source, int, Sequence[str]], Record],
    threads: int,
    title: str,
) -> Iterator[Record]:
    """Writes the pieces that are not finished, and yields the record of every piece in order.

    Args:
        reading: how the files are read.
        finished: function that returns the record of a piece by its number, or None if it is still to be written.
        write: function that writes a piece, given its number, the piece, its file, the file's index and its columns.
        threads: number of pieces that are processed at the same time.
        title: title of the progress bar.

    Raises:
        ValueError: If a file cannot be read.
    """
    number = rows = 0
    done = 0
    with progress_bar(sum(file.size for file in reading.files), title, "B", scale=True) as bar:
        for index, source in enumerate(reading.files):
            names, start = reading.header(source)
            line = 2 if start else 1
            while (record := finished(number)) is not None and record.file == index:
                yield record
                start, line, rows, number = record.end, record.next_line, rows + record.rows, number + 1
            tasks = (
                partial(_once, finished, write, first, piece, source, index, names)
                for first, piece in enumerate(reading.pieces(source, names, start, line), start=number)
            )
            for record in in_order(threads, tasks):
                rows, number = rows + record.rows, number + 1
                bar.update(done + record.progress - bar.n)
                bar.set_postfix_str(f"{rows / max(bar.format_dict['elapsed'], 1e-9):,.0f} rows/s", refresh=False)
                yield record
            done += source.size
            bar.update(done - bar.n)


def _once(
    finished: Callable[[int], Record | None],
    write: Callable[[int, Piece, Source, int, Sequence[str]], Record],
    number: int,
    *piece: Any,
) -> Record:
    """Writes a piece unless it is finished, which one after an unfinished piece may be, and returns its record."""
    return finished(number) or write(number, *piece)


def in_order(threads: int, tasks: Iterable[Callable[[], _T]]) -> Iterator[_T]:
    """Yields the results of tasks that run on several threads, in order, with few of them waiting in memory."""
    if threads == 1:
        for task in tasks:
            yield task()
        return
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[_T]] = deque()
        try:
            for task in tasks:
                pending.append(pool.submit(task))
                if len(pending) > threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def write_rejects(path: Path, file: str, rejects: Mapping[int, str]) -> None:
    """Writes the rejected rows of a piece in order, one JSON object per line, without the secrets of a URL."""
    entries = [{"file": redact(file), "line": line, "reason": reason} for line, reason in sorted(rejects.items())]
    write_text(path, "".join(json.dumps(entry) + "\n" for entry in entries))


def collect_rejects(parts: Iterable[Path], target: Path) -> None:
    """Joins the rejected rows of all pieces into one file."""
    with atomic_path(target) as temporary, temporary.open("w") as file:
        for part in parts:
            file.write(part.read_text())
