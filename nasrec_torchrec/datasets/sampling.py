"""A sample of the rows of raw files, read before anything is known about them but what they are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nasrec_torchrec.datasets import arrow_files, lines, sources, values
from nasrec_torchrec.datasets.config import TextFlags, TextFormat
from nasrec_torchrec.datasets.pieces import FolderColumn, Reading, with_partitions
from nasrec_torchrec.datasets.sources import Piece, Source

# Pieces that a large file is read in, spread evenly over it.
_PLACES = 16
_GUESSED_FROM = 200


@dataclass(frozen=True)
class Sample:
    """Some rows of raw files.

    Args:
        table: their columns, plain: text as strings, and other types as they are stored.
        files: files that they come from.
        text: how text files were read; None if there are none.
        rows: number of rows in all files together, estimated where they were not read to the end.
        whole: whether the sample holds all rows.
        rejected: number of lines that are not rows.
        first_reject: where the first one is, and what is wrong with it.
    """

    table: pa.Table
    files: tuple[Source, ...] = ()
    text: TextFormat | None = None
    rows: int = 0
    whole: bool = True
    rejected: int = 0
    first_reject: str = ""


def sample_table(data: Any) -> Sample:
    """Takes all rows of a table in memory.

    Args:
        data: PyArrow table, or a dataframe of a library that exchanges data by Arrow, such as pandas or Polars.

    Raises:
        ValueError: If it is anything else.
    """
    try:
        table = data if isinstance(data, pa.Table) else pa.table(data)
    except (TypeError, pa.ArrowException) as error:
        raise ValueError(f"expected a PyArrow table or a dataframe, found {type(data).__name__}: {error}") from None
    return Sample(_plain(table), rows=table.num_rows)


def sample_files(patterns: Sequence[str], text: TextFlags, rows: int) -> Sample:
    """Reads rows of all files: of the small ones every row, of the others some from many places.

    A compressed text file cannot be entered in the middle, so its first rows are taken.

    Args:
        patterns: paths, URIs and patterns with ``*``.
        text: how text files are read, where that is known; the rest is found out.
        rows: number of rows to read, about.

    Raises:
        ValueError: If a file cannot be read, or files have different columns.
    """
    files = sources.find(patterns)
    if len(kinds := {file.kind for file in files}) > 1:
        raise ValueError(f"{', '.join(patterns)}: expected files of one kind, found {' and '.join(sorted(kinds))}")
    share = max(1, rows // len(files))
    text_format = None
    match files[0].kind:
        case "parquet":
            parts = [_parquet(file, share) for file in files]
        case "arrow":
            parts = [_arrow(file, share) for file in files]
        case "json":
            text_format = text.over(TextFormat())
            parts = [_json(file, share, text_format) for file in files]
        case _:
            text_format = _text_format(files[0], text)
            parts = [_text(file, share, text_format) for file in files]
    parts = [replace(part, table=with_partitions(part.table, part.files[0])) for part in parts]
    names = parts[0].table.column_names
    for part in parts:
        sources.check_columns(part.files[0], names, part.table.column_names)
    try:
        table = pa.concat_tables(_alike([part.table.select(names) for part in parts]), promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(f"{', '.join(patterns)}: the files have columns of different types: {error}") from None
    total, whole = sum(part.rows for part in parts), all(part.whole for part in parts)
    rejected = [part for part in parts if part.rejected]
    first = rejected[0].first_reject if rejected else ""
    return Sample(table, tuple(files), text_format, total, whole, sum(part.rejected for part in parts), first)


def _text_format(source: Source, flags: TextFlags) -> TextFormat:
    """What the first lines of a file say about how it is to be read.

    Raises:
        ValueError: If no delimiter divides them, or the first line holds no names.
    """
    head = lines.first_lines(source, _GUESSED_FROM)
    shown = "\n".join(f"  {line[:100].decode('utf-8', 'backslashreplace')}" for line in head[:3])
    if not any(line.strip() for line in head):
        raise ValueError(f"{source.uri}: the file holds no rows")
    delimiter = flags.delimiter or lines.guess_delimiter(head)
    if delimiter is None:
        raise ValueError(
            f"{source.uri}: no comma, tab, semicolon or bar divides its lines into columns; name what does by "
            f"--delimiter. It begins with:\n{shown}"
        )
    found = replace(flags, delimiter=delimiter).over(TextFormat())
    if flags.quoting is None:
        found = _with_quoting(source, found)
    if not flags.columns:
        names, _ = lines.header(source, found)
        numbers = [name for name in names if _is_number(name)]
        if numbers:
            raise ValueError(
                f"{source.uri}: line 1 holds {numbers[:3]}, which look like values and not like names of columns; "
                f"name the columns by --columns a,b,c. It begins with:\n{shown}"
            )
    return found


def _with_quoting(source: Source, text_format: TextFormat) -> TextFormat:
    """Whether quotes enclose values, as they do unless more lines are rows without."""
    head = b"\n".join(lines.first_lines(source, 2000))
    if b'"' not in head:
        return text_format
    names, start = lines.header(source, text_format)

    def rejected(form: TextFormat) -> list[bytes]:
        bad = lines.read_lines(Piece(head[start:], 0, 2, 0), names, [], form)[2]
        return [rows[line - 1] for line in bad]

    rows = head.split(b"\n")
    bare = replace(text_format, quoting=False)
    without = rejected(bare)
    # A line that would end a quoted value if there were any is the rest of a value that spans lines.
    if any(line.count(b'"') % 2 for line in without):
        return text_format
    return bare if len(without) < len(rejected(text_format)) else text_format


def _text(source: Source, rows: int, text_format: TextFormat) -> Sample:
    reading = Reading([source], list, text_format, 1)
    names, start = reading.header(source)
    tables: list[pa.Table] = [
        pa.table({name: pa.array([], pa.string() if isinstance(name, FolderColumn) else pa.binary()) for name in names})
    ]
    rejects: dict[int, str] = {}
    found, total, whole, elsewhere = 0, 0, True, 0
    for piece in reading.pieces(source, names, start, 2 if start else 1):
        part = reading.rows(piece, source, names)
        tables.append(part.table)
        rejects |= part.rejects
        found += part.table.num_rows
        stored = piece.end if source.compression is None else piece.progress
        total = round(found * max(1.0, source.size / max(1, stored)))
        whole = stored >= source.size
        if not whole and source.compression is None and total > 2 * rows:
            # Much more than is wanted: the rest of the sample comes from everywhere in the file.
            missing = (piece.end - start) * max(0, rows - found) // max(1, found)
            for place in spread(source, piece.end, max(1 << 16, missing // _PLACES)):
                part = reading.rows(place, source, names)
                tables.append(part.table)
                elsewhere += len(part.rejects)
            break
        if not whole and found >= rows:
            break
    first_reject = next((f"{source.uri}, line {line}: {why}" for line, why in sorted(rejects.items())), "")
    table = _plain(pa.concat_tables(tables))
    return Sample(table, (source,), text_format, total, whole, len(rejects) + elsewhere, first_reject)


def spread(source: Source, start: int, size: int) -> Iterator[Piece]:
    """Yields whole lines from places that are spread evenly over the rest of an uncompressed file."""
    with sources.open_uri(source.uri) as file, sources.reading(source.uri):
        for place in np.linspace(start, max(start, source.size - size), _PLACES, dtype=int):
            file.seek(int(place))
            data = sources.read_fully(file, size)
            # The first and the last line may be cut off.
            data = data[data.find(b"\n") + 1 : data.rfind(b"\n") + 1]
            if data:
                yield Piece(data, int(place) + size, 2, int(place) + size)


def _parquet(source: Source, rows: int) -> Sample:
    with sources.open_uri(source.uri) as raw, sources.reading(source.uri):
        file = pq.ParquetFile(raw)
        names = file.schema_arrow.names
        sources.check_columns(source, names, names)
        total, groups = file.metadata.num_rows, file.num_row_groups
        if total <= rows:
            return Sample(_plain(file.read()), (source,), None, total)
        chosen = np.unique(np.linspace(0, groups - 1, min(groups, _PLACES), dtype=int))
        each = max(1, rows // len(chosen))
        tables = []
        for group in chosen:
            batches = file.iter_batches(min(each, 1 << 16), row_groups=[int(group)])
            taken = 0
            for batch in batches:
                tables.append(pa.Table.from_batches([batch]))
                taken += batch.num_rows
                if taken >= each:
                    break
    return Sample(_plain(pa.concat_tables(tables)), (source,), None, total, whole=False)


def _arrow(source: Source, rows: int) -> Sample:
    table, total = arrow_files.sample(source, rows, _PLACES)
    sources.check_columns(source, table.column_names, table.column_names)
    return Sample(_plain(table), (source,), None, total, whole=table.num_rows == total)


def _json(source: Source, rows: int, text_format: TextFormat) -> Sample:
    """Objects of the first lines, and of many places of a large file."""
    reading = Reading([source], list, text_format, 1)
    names, start = reading.header(source)
    parts: list[bytes] = []
    count, stored = 0, 0
    for piece in reading.pieces(source, names, start, 1):
        assert isinstance(piece.data, bytes)
        parts.append(piece.data if piece.data.endswith(b"\n") else piece.data + b"\n")
        count += piece.data.count(b"\n")
        stored = piece.end if source.compression is None else piece.progress
        if count >= rows:
            break
        if source.compression is None and count * source.size > 2 * rows * stored:
            missing = stored * (rows - count) // max(1, count)
            more = spread(source, piece.end, max(1 << 16, missing // _PLACES))
            parts += [place.data for place in more if isinstance(place.data, bytes)]
            break
    read = reading.rows(Piece(b"".join(parts), 0, 1, 0), source, names)
    whole = stored >= source.size
    total = read.table.num_rows if whole else round(count * max(1.0, source.size / max(1, stored)))
    first = next((f"{source.uri}, line {line}: {why}" for line, why in sorted(read.rejects.items())), "")
    return Sample(_plain(read.table), (source,), text_format, total, whole, len(read.rejects), first)


def _alike(tables: Sequence[pa.Table]) -> list[pa.Table]:
    """The tables with text instead of what is of several kinds in them: numbers in one file, text in the next."""
    mixed = [name for name in tables[0].column_names if _is_mixed([table.schema.field(name).type for table in tables])]
    for name in mixed:
        tables = [
            table.set_column(table.column_names.index(name), name, values.text(values.plain(table.column(name)), {}))
            for table in tables
        ]
    return list(tables)


def _is_mixed(kinds: Sequence[pa.DataType]) -> bool:
    known = [kind for kind in kinds if not pa.types.is_null(kind)]
    return len({values.is_text(kind) for kind in known}) > 1


def _plain(table: pa.Table) -> pa.Table:
    """The columns without dictionaries, views and the like, and bytes as text where all of them are UTF-8."""
    columns = {}
    table = sources.flat(table)
    for name, column in zip(table.column_names, table.columns, strict=True):
        array = values.plain(column)
        refused: values.Rejects = {}
        texts = values.text(array, refused) if values.is_text(array.type) else array
        columns[name] = array if refused else texts
    return pa.table(columns)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return word.strip().lower() not in ("nan", "inf", "infinity")
