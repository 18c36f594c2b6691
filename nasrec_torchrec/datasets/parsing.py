"""Step 1 of preparation: everything that depends on a single row, piece by piece."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nasrec_torchrec.datasets import pieces, splits
from nasrec_torchrec.datasets.pieces import Record
from nasrec_torchrec.datasets.preparation_job import LINE, SPLIT_KEY, Job
from nasrec_torchrec.datasets.sources import Piece, Source
from nasrec_torchrec.datasets.work_folder import check_rejects, part_file
from nasrec_torchrec.runs.files import atomic_path, write_text

# What is unread is taken to hold at most so many times as many rows a byte as what was read.
_DENSER = 4.0


def parse(job: Job, work: Path) -> list[Record]:
    """Parses all files; every piece becomes an Arrow file.

    Args:
        job: preparation to run.
        work: its work folder; finished pieces in it are kept.

    Returns:
        list: The record of every piece.

    Raises:
        ValueError: If a file cannot be read, too many rows are rejected, or no row is left.
    """
    parts: list[Record] = []
    rows = rejected = 0
    size = sum(file.size for file in job.files)
    for part in pieces.work_off(
        job.reading, partial(_finished, work), partial(_parse_piece, job, work), job.threads, "parse"
    ):
        parts.append(part)
        rows += part.rows
        rejected += part.rejected
        read = sum(file.size for file in job.files[: part.file]) + part.progress
        unread = _DENSER * (rows + rejected) * max(0, size - read) / max(1, read)
        check_rejects(job, work, rows, rejected, round(unread))
    check_rejects(job, work, rows, rejected)
    if not rows:
        raise ValueError(f"{', '.join(file.uri for file in job.files[:3])}: no row could be read")
    return parts


def _finished(work: Path, number: int) -> Record | None:
    file = part_file(work, number, "json")
    return Record.from_json(json.loads(file.read_text()), file) if file.exists() else None


def _parse_piece(
    job: Job, work: Path, number: int, piece: Piece, source: Source, index: int, names: Sequence[str]
) -> Record:
    parsed, kept, rejects = job.parse_rows(job.reading.rows(piece, source, names))
    parsed = parsed.append_column(LINE, pa.array(kept))
    if job.split.split == "column":
        parsed, unknown = _named_splits(parsed)
        rejects |= {line: f"column '{job.split.split_column}': {reason}" for line, reason in unknown.items()}
    elif job.split.split == "given":
        which = np.full(parsed.num_rows, job.split_of_file[index], np.uint8)
        parsed = parsed.append_column(SPLIT_KEY, pa.array(which))
    with atomic_path(part_file(work, number, "arrow")) as temporary, pa.ipc.new_file(temporary, parsed.schema) as file:
        file.write_table(parsed)
    pieces.write_rejects(part_file(work, number, "rejects"), source.uri, rejects)
    record = Record(index, piece.end, piece.next_line, parsed.num_rows, len(rejects), piece.progress)
    # The record comes last: it says that the piece is finished.
    write_text(part_file(work, number, "json"), json.dumps(record.to_json()))
    return record


def _named_splits(parsed: pa.Table) -> tuple[pa.Table, dict[int, str]]:
    """Replaces the name of each row's split by its index; also returns the reason for each line without a valid one."""
    texts = parsed.column(SPLIT_KEY).combine_chunks().dictionary_encode()
    texts = texts.chunk(0) if isinstance(texts, pa.ChunkedArray) else texts
    indices = pa.array([splits.named(text) for text in texts.dictionary.to_pylist()], pa.uint8())
    key = pc.take(indices, texts.indices)
    missing = key.is_null().to_numpy(zero_copy_only=False)
    lines = parsed.column(LINE).to_numpy()
    unknown = {
        int(lines[row]): f"expected {', '.join(splits.NAMES)}, found {texts[int(row)].as_py()!r}"
        for row in np.flatnonzero(missing)
    }
    parsed = parsed.set_column(parsed.schema.get_field_index(SPLIT_KEY), SPLIT_KEY, key)
    return parsed.filter(pa.array(~missing)), unknown
