"""Tries some rows from all over the files before the first piece is parsed, so that what cannot work fails at once."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from nasrec_torchrec.datasets.diagnosis import diagnosis
from nasrec_torchrec.datasets.preparation_job import Job
from nasrec_torchrec.datasets.sampling import spread
from nasrec_torchrec.datasets.sources import Piece, Source

# Files that are tried, and the size of what is read at their beginning and at each of the places in the rest.
_FILES, _HEAD, _PLACE = 4, 256 << 10, 32 << 10
# Shares of rejected rows that are called hopeless: more than clusters of bad lines, which may be rare elsewhere.
_HOPELESS, _TIMES = 0.15, 5
_SHOWN = 8


def probe(job: Job) -> None:
    """Reads some rows of up to four text files.

    Raises:
        ValueError: If far more of a file's rows are rejected than the job allows. The message says how many, why, how
            the file begins, and what its delimiter, quoting or encoding probably is.
    """
    # Of a smaller file, parsing it says more as quickly.
    texts = [source for source in job.files if source.kind == "text" and source.size > _HEAD]
    for index in np.unique(np.linspace(0, len(texts) - 1, min(len(texts), _FILES), dtype=int)):
        _try(job, texts[int(index)])


def _try(job: Job, source: Source) -> None:
    names, start = job.reading.header(source)
    rows = rejected = 0
    first = ""
    labels: Counter[str] = Counter()
    for piece in _places(job, source, names, start):
        found = job.reading.rows(piece, source, names)
        _, _, reasons = job.parse_rows(found)
        rows, rejected = rows + found.table.num_rows + len(found.rejects), rejected + len(reasons)
        if not first and reasons:
            line = min(reasons)
            known = piece.first_line == (2 if start else 1)
            first = f"line {line}: {reasons[line]}" if known else reasons[line]
        if job.schema.label in found.table.column_names:
            labels.update(_texts(found.table.column(job.schema.label)))
    if rejected <= max(_HOPELESS, _TIMES * job.config.max_rejects) * rows:
        return
    of_label = f"label '{job.schema.label}'" in first
    seen = f"the label holds {_counted(labels)}; label_values in the schema says what each means" if of_label else ""
    raise ValueError(
        f"{source.uri}: {rejected:,} of {rows:,} rows that were tried from all over the file cannot be read, and "
        f"max_rejects is {job.config.max_rejects}; the first is {first}; "
        f"{seen + '; ' if seen else ''}{diagnosis(source, job.reading.text_format)}"
    )


def _places(job: Job, source: Source, names: Sequence[str], start: int) -> Iterator[Piece]:
    head = next(job.reading.beginning(source, start, _HEAD), None)
    if head is not None:
        yield head
        if source.compression is None and source.size > head.end + _PLACE:
            yield from spread(source, head.end, _PLACE)


def _texts(column: pa.ChunkedArray) -> list[str]:
    found = column.to_pylist()
    return [value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value) for value in found]


def _counted(labels: Counter[str]) -> str:
    shown = [f"{value!r} in {count:,} rows" for value, count in labels.most_common(_SHOWN)]
    return ", ".join(shown) + (f" and {len(labels) - _SHOWN:,} more values" if len(labels) > _SHOWN else "")
