"""Raw files into a prepared data set: streaming, in bounded memory, resumable, and the same bytes every time.

1. Every piece of the raw files is parsed into an Arrow file of its own (:func:`_parse_sources`).
2. The labels of all rows decide the splits; dictionaries, means and deviations are taken from train (:func:`_fit`).
3. Every Arrow file becomes one Parquet file per split (:func:`_write_splits`).

A finished file is never written again: a run that was killed goes on behind its last finished piece.
"""

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from iopath.common.file_io import get_cache_dir

from nasrec_torchrec.datasets import sources, splits, transform
from nasrec_torchrec.datasets.config import PreparationConfig, SplitConfig, TextFormat
from nasrec_torchrec.datasets.prepared import (
    DICTIONARIES,
    MANIFEST,
    MANIFEST_FORMAT,
    SCHEMA,
    read_manifest,
    sha256,
    write_rows,
)
from nasrec_torchrec.datasets.schema import FIRST_WORD, Schema, SparseFeature
from nasrec_torchrec.datasets.sources import Piece
from nasrec_torchrec.datasets.splits import SPLITS
from nasrec_torchrec.progress import progress_bar
from nasrec_torchrec.runs.files import atomic_path, publish, write_text
from nasrec_torchrec.runs.paths import RemotePath

_T = TypeVar("_T")
_KEY = "//split"  # the column that a split rule reads; no schema can name one like it
_REJECTS = "rejects.jsonl"


@dataclass(frozen=True)
class Derivation:
    """Columns made from raw ones before they are parsed.

    Args:
        inputs: raw columns that it reads.
        outputs: columns that it adds.
        add: returns the table with the columns added.
        identity: changes whenever the result would.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    add: Callable[[pa.Table], pa.Table]
    identity: str


@dataclass(frozen=True)
class RawData:
    """What to prepare.

    Args:
        files: paths and URIs, ``*`` allowed; ``.gz`` is text, ``.parquet`` is Parquet, everything else text.
        schema: of the raw columns.
        text_format: of the text files.
        split: how rows are divided.
        title: for the manifest.
        derivation: columns that are not in the files.
        identity: stands for the files when they are temporary; left out, it is their names, sizes and times.
    """

    files: tuple[str, ...]
    schema: Schema
    text_format: TextFormat = field(default_factory=TextFormat)
    split: SplitConfig = field(default_factory=SplitConfig)
    title: str = ""
    derivation: Derivation | None = None
    identity: str = ""


def prepare(raw: RawData, out: Path, config: PreparationConfig | None = None) -> Schema:
    """Prepares a data set; ``out`` appears when it is complete, in one step.

    Args:
        raw: files and their meaning.
        out: folder to write.
        config: how.

    Returns:
        Schema: with everything filled in that was measured.

    Raises:
        ValueError: for unreadable files, too many rejected rows, or another data set at ``out``.
    """
    config = config or PreparationConfig()
    files = sources.expand(raw.files)
    job = _Job(raw, files, config, out)
    if (out / MANIFEST if isinstance(out, RemotePath) else out).exists() and not config.overwrite:
        if read_manifest(out)["job"] != job.identity:
            raise ValueError(f"{out}: holds a data set prepared from something else; --overwrite true replaces it")
        print(f"{out} is up to date: the same files were prepared in the same way", file=sys.stderr)
        return Schema.read(out / SCHEMA)
    for file in files:
        sources.check_source(file, job.wanted, raw.text_format)
    with _work_folder(job) as work:
        parts = _parse_sources(job, work)
        if not any(part["rows"] for part in parts):
            raise ValueError(f"{', '.join(files[:3])}: no row could be read")
        schema, dictionaries, assigned = _fit(job, work, parts)
        _write_splits(job, work, parts, schema, dictionaries, assigned)
        _finish(job, work, parts, schema)
    return schema


class _Job:
    """A preparation, and what makes it the same as another one."""

    def __init__(self, raw: RawData, files: Sequence[str], config: PreparationConfig, out: Path) -> None:
        self.raw, self.files, self.config, self.out = raw, files, config, out
        self.schema, self.split = raw.schema, raw.split
        self.threads = config.threads or os.cpu_count() or 1
        key = [raw.split.split_column] if raw.split.split_column else []
        derivation = raw.derivation
        made = derivation.outputs if derivation else ()
        histories = [feature.name for feature in raw.schema.sparse if feature.ids == "history"]
        if histories:
            raise ValueError(
                f"schema: sparse: histories are added to prepared data (see datasets.crosses), found {histories}"
            )
        needed = [*raw.schema.raw_columns, *key, *(derivation.inputs if derivation else ())]
        self.wanted = [name for name in dict.fromkeys(needed) if name not in made]
        self.split_of_file: list[int | None] = [None] * len(files)
        if raw.split.split == "given":
            self.split_of_file = [splits.named(Path(file).name.split(".")[0]) for file in files]
            unnamed = [file for file, index in zip(files, self.split_of_file, strict=True) if index is None]
            if unnamed:
                raise ValueError(f"split given: {unnamed[0]}: expected a file named {', '.join(splits.NAMES)}")
        description = {
            "format": MANIFEST_FORMAT,
            "schema": raw.schema.to_dict(),
            "text": asdict(raw.text_format),
            "split": asdict(raw.split),
            "piece_mib": config.piece_mib,
            "derivation": derivation.identity if derivation else None,
            "files": raw.identity or [_fingerprint(file) for file in files],
        }
        self.identity = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()

    def pieces(self, file: str, start: int, line: int) -> Iterator[Piece]:
        if sources.is_parquet(file):
            # About as many rows as lines of 128 bytes in a piece of text.
            return sources.parquet_pieces(file, self.config.piece_mib << 13, start, self.wanted)
        return sources.text_pieces(file, self.config.piece_mib << 20, start, line)


def _fingerprint(file: str) -> list[Any]:
    path = Path(file)
    if path.exists():
        return [file, path.stat().st_size, path.stat().st_mtime_ns]
    return [file, sources.size_of(file)]


@contextmanager
def _work_folder(job: _Job) -> Iterator[Path]:
    """The folder of an unfinished preparation: an earlier one of the same job is continued, any other is dropped.

    It lies beside the data set, or in the path manager's cache where that is remote.
    """
    work = job.out.with_name(f".{job.out.name}.preparing")
    if isinstance(work, RemotePath):
        work = Path(get_cache_dir()) / f"{hashlib.sha256(str(work).encode()).hexdigest()}.preparing"
    work.mkdir(parents=True, exist_ok=True)
    with work.with_name(f"{work.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{job.out}: another process is preparing it") from None
        identity = work / "job"
        if not identity.exists() or identity.read_text() != job.identity:
            shutil.rmtree(work)
            work.mkdir()
            write_text(identity, job.identity)
        yield work
        shutil.rmtree(work)
        Path(lock.name).unlink()


def _in_order(threads: int, tasks: Iterable[Callable[[], _T]]) -> Iterator[_T]:
    """Results of tasks that run on some threads, in order, with few of them waiting in memory."""
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[_T]] = deque()
        for task in tasks:
            pending.append(pool.submit(task))
            if len(pending) > threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _parse_sources(job: _Job, work: Path) -> list[dict[str, Any]]:
    """Step 1. Returns the record of every part."""
    parts: list[dict[str, Any]] = []
    rows = rejected = read = 0
    sizes = [sources.size_of(file) for file in job.files]
    with progress_bar(sum(sizes), "parse", "B", scale=True) as bar:
        for index, file in enumerate(job.files):
            names, start = ((), 0) if sources.is_parquet(file) else sources.header(file, job.raw.text_format)
            line = 2 if start else 1
            while (record := _record(work, len(parts))) is not None and record["file"] == index:
                parts.append(record)
                start, line = record["end"], record["next_line"]
            rows, rejected = (sum(part[key] for part in parts) for key in ("rows", "rejected"))
            for record in _in_order(
                job.threads, _parse_tasks(job, work, len(parts), index, names, job.pieces(file, start, line))
            ):
                parts.append(record)
                rows += record["rows"]
                rejected += record["rejected"]
                bar.update(read + record["progress"] - bar.n)
                bar.set_postfix_str(f"{rows / max(bar.format_dict['elapsed'], 1e-9):,.0f} rows/s", refresh=False)
                if rows + rejected > 10_000:
                    _check_rejects(job, work, rows, rejected)
            read += sizes[index]
            bar.update(read - bar.n)
    _check_rejects(job, work, rows, rejected)
    return parts


def _parse_tasks(
    job: _Job, work: Path, first: int, index: int, names: Sequence[str], pieces: Iterator[Piece]
) -> Iterator[Callable[[], dict[str, Any]]]:
    for number, piece in enumerate(pieces, start=first):
        record = _record(work, number)
        if record is None:
            yield partial(_parse_piece, job, work, number, index, names, piece)
        else:
            yield partial(_same, record)


def _same(record: dict[str, Any]) -> dict[str, Any]:
    return record


def _record(work: Path, number: int) -> dict[str, Any] | None:
    """What is known of a finished part."""
    file = work / "parts" / f"{number:06d}.json"
    return json.loads(file.read_text()) if file.exists() else None


def _parse_piece(job: _Job, work: Path, number: int, index: int, names: Sequence[str], piece: Piece) -> dict[str, Any]:
    file = job.files[index]
    refused: dict[int, str] = {}
    try:
        if isinstance(piece.data, bytes):
            table, lines, refused = sources.read_lines(piece, names, job.wanted, job.raw.text_format)
            next_line = piece.first_line + piece.data.count(b"\n")
        else:
            table = piece.data
            next_line = piece.first_line + table.num_rows
            lines = np.arange(piece.first_line, next_line)
        if job.raw.derivation:
            table = job.raw.derivation.add(table)
        key = job.split.split_column
        what = {_KEY: "text" if job.split.split == "column" else "number"} if key else {}
        if key:
            table = table.append_column(_KEY, table.column(key))
        parsed, bad = transform.parse(table, job.schema, what)
    except ValueError as error:  # also what Arrow raises
        raise ValueError(f"{file}: line {piece.first_line} and after: {error}") from None
    refused |= {int(lines[row]): reason for row, reason in bad.items()}
    if job.split.split == "column":
        parsed, unknown = _named_splits(parsed)
        kept = np.delete(lines, list(bad))
        refused |= {int(kept[row]): f"column '{key}': {reason}" for row, reason in unknown.items()}
    elif job.split.split == "given":
        which = job.split_of_file[index]
        parsed = parsed.append_column(_KEY, pa.array(np.full(parsed.num_rows, which, np.uint8)))
    base = work / "parts" / f"{number:06d}"
    with atomic_path(base.with_suffix(".arrow")) as temporary, pa.ipc.new_file(temporary, parsed.schema) as writer:
        writer.write_table(parsed)
    rejects = [{"file": file, "line": line, "reason": reason} for line, reason in sorted(refused.items())]
    write_text(base.with_suffix(".rejects"), "".join(json.dumps(entry) + "\n" for entry in rejects))
    record = {
        "file": index,
        "end": piece.end,
        "next_line": next_line,
        "progress": piece.progress,
        "rows": parsed.num_rows,
        "rejected": len(rejects),
    }
    write_text(base.with_suffix(".json"), json.dumps(record))
    return record


def _named_splits(parsed: pa.Table) -> tuple[pa.Table, dict[int, str]]:
    texts = parsed.column(_KEY).combine_chunks().dictionary_encode()
    texts = texts.chunk(0) if isinstance(texts, pa.ChunkedArray) else texts
    indices = pa.array([splits.named(text) for text in texts.dictionary.to_pylist()], pa.uint8())
    key = pc.take(indices, texts.indices)
    missing = key.is_null().to_numpy(zero_copy_only=False)
    unknown = {
        int(row): f"expected {', '.join(splits.NAMES)}, found {texts[int(row)].as_py()!r}"
        for row in np.flatnonzero(missing)
    }
    parsed = parsed.set_column(parsed.schema.get_field_index(_KEY), _KEY, key)
    return parsed.filter(pa.array(~missing)), unknown


def _check_rejects(job: _Job, work: Path, rows: int, rejected: int) -> None:
    """Raises ValueError when too many rows were rejected."""
    if rejected <= job.config.max_rejects * (rows + rejected):
        return
    collected = job.out.with_name(f"{job.out.name}.{_REJECTS}")
    _collect_rejects(work, collected)
    with collected.open() as file:
        first = json.loads(file.readline())
    raise ValueError(
        f"{rejected} of {rows + rejected} rows were rejected, more than max_rejects {job.config.max_rejects} allows; "
        f"the first is {first['file']}, line {first['line']}: {first['reason']}; all are in {collected}"
    )


def _collect_rejects(work: Path, target: Path) -> None:
    with atomic_path(target) as temporary, temporary.open("w") as file:
        for part in sorted((work / "parts").glob("*.rejects")):
            file.write(part.read_text())


def _read_part(work: Path, number: int, columns: Sequence[str] | None = None) -> pa.Table:
    with pa.memory_map(str(work / "parts" / f"{number:06d}.arrow")) as file:
        table = pa.ipc.open_file(file).read_all()
    return table.select(columns) if columns is not None else table


def _fit(
    job: _Job, work: Path, parts: Sequence[Mapping[str, Any]]
) -> tuple[Schema, dict[str, pa.Array], list[np.ndarray]]:
    """Step 2: the filled-in schema, the dictionaries, and the split of every row by part."""
    labels = _all(work, parts, job.schema.label, np.int8)
    key = None
    if job.split.split_column or job.split.split == "given":
        key = _all(work, parts, _KEY, np.float64 if job.split.split == "time" else np.uint8)
    ends = np.cumsum([part["rows"] for part in parts])[:-1]
    assigned = np.split(splits.assign(job.split, labels, key), ends)
    train = [rows == 0 for rows in assigned]

    schema = job.schema
    dictionaries: dict[str, pa.Array] = {}
    # A cross combines the ids of others: its words are counted when theirs are numbered.
    tables = sorted(schema.features_by_table().items(), key=lambda table: bool(table[1][0].cross))
    counted = {name: features for name, features in tables if features[0].ids == "dictionary"}
    scaled = [feature.name for feature in schema.dense if feature.transform == "standardize"]
    with progress_bar(len(counted) + len(scaled), "fit", "column") as bar:
        dense = []
        for feature in schema.dense:
            if feature.transform == "standardize":
                mean, deviation = _moments(work, feature.name, train)
                feature = replace(feature, mean=mean, deviation=deviation)
                bar.update()
            dense.append(feature)
        rows: dict[str, int] = {}
        for table, features in counted.items():
            known = replace(schema, sparse=tuple(_numbered(feature, rows) for feature in schema.sparse))
            values = partial(_values, work, known, dictionaries)
            words = count_words(values, features, train)
            if features[0].num_embeddings is not None:
                words = words[: features[0].num_embeddings - FIRST_WORD]
            dictionaries[table] = words
            rows[table] = features[0].num_embeddings or len(words) + FIRST_WORD
            bar.update()
    sparse = tuple(_numbered(feature, rows) for feature in schema.sparse)
    return replace(schema, dense=tuple(dense), sparse=sparse), dictionaries, assigned


def _numbered(feature: SparseFeature, rows: Mapping[str, int]) -> SparseFeature:
    """The feature with the rows of its table, where they are counted already."""
    return replace(feature, num_embeddings=rows.get(feature.table, feature.num_embeddings))


def _values(
    work: Path, schema: Schema, dictionaries: Mapping[str, pa.Array], number: int, feature: SparseFeature
) -> pa.ChunkedArray:
    """What a feature's dictionary counts in a part."""
    if not feature.cross:
        return _read_part(work, number, [feature.name]).column(0)
    inputs = tuple(other for other in schema.sparse if other.name in feature.cross)
    of_inputs = replace(schema, dense=(), sparse=inputs)
    table = transform.finish(_read_part(work, number, of_inputs.raw_columns), of_inputs, dictionaries)
    return pa.chunked_array([transform.combine(table, feature)])


def _all(work: Path, parts: Sequence[Any], column: str, kind: type) -> np.ndarray:
    return np.concatenate(
        [_read_part(work, number, [column]).column(0).to_numpy().astype(kind) for number in range(len(parts))]
    )


def _moments(work: Path, column: str, train: Sequence[np.ndarray]) -> tuple[float, float]:
    """Mean and deviation of the numbers that are there; 0 and 1 of a column without any, or of a constant one."""

    def known() -> Iterator[np.ndarray]:
        for number, rows in enumerate(train):
            values = _read_part(work, number, [column]).column(0).to_numpy()[rows]
            yield values[~np.isnan(values)]

    count = sum(len(values) for values in known())
    mean = sum(float(values.sum()) for values in known()) / max(count, 1)
    variance = sum(float(np.square(values - mean).sum()) for values in known()) / max(count, 1)
    deviation = float(np.sqrt(variance))
    if not np.isfinite(mean) or not np.isfinite(deviation):
        raise ValueError(f"column '{column}': its numbers are too large to standardize")
    return mean, deviation if deviation > 0 else 1.0


def count_words(
    values_of: Callable[[int, SparseFeature], pa.ChunkedArray],
    features: Sequence[SparseFeature],
    train: Sequence[np.ndarray],
) -> pa.Array:
    """Words of the training rows, the most frequent first, equally frequent ones in alphabetical order.

    Args:
        values_of: gives a feature's values in a part.
        features: that share the dictionary.
        train: of every part, whether its rows are training rows.
    """
    total = pa.table({"word": pa.array([], pa.string()), "count": pa.array([], pa.int64())})
    waiting: list[pa.Table] = []
    for number, rows in enumerate(train):
        for feature in features:
            values = values_of(number, feature).filter(pa.array(rows))
            if pa.types.is_list(values.type):
                values = pc.list_flatten(values)
            counts = pc.value_counts(values.drop_null())
            waiting.append(pa.table({"word": counts.field("values"), "count": counts.field("counts")}))
        # Merging costs as much as the total is long: do it when as much is waiting.
        if number == len(train) - 1 or sum(len(table) for table in waiting) >= max(len(total), 1 << 20):
            merged = pa.concat_tables([total, *waiting]).group_by("word", use_threads=False)
            total = merged.aggregate([("count", "sum")]).rename_columns(["word", "count"])
            waiting = []
    total = total.filter(pc.greater_equal(total.column("count"), features[0].min_count))
    total = total.sort_by([("count", "descending"), ("word", "ascending")])
    return total.column("word").combine_chunks()


def _write_splits(
    job: _Job,
    work: Path,
    parts: Sequence[Mapping[str, Any]],
    schema: Schema,
    dictionaries: Mapping[str, pa.Array],
    assigned: Sequence[np.ndarray],
) -> None:
    """Step 3."""

    def write(number: int) -> int:
        record = work / "splits" / f"{number:06d}.json"
        if record.exists():
            return int(parts[number]["rows"])
        table = transform.finish(_read_part(work, number, schema.raw_columns), schema, dictionaries)
        written = {}
        for index, split in enumerate(SPLITS):
            rows = table.filter(pa.array(assigned[number] == index))
            # An empty split still has a file, which tells its columns.
            if rows.num_rows or number == 0:
                written[split] = write_rows(work / "data" / split / f"part-{number:06d}.parquet", rows, schema.label)
        write_text(record, json.dumps(written))
        return table.num_rows

    with progress_bar(sum(part["rows"] for part in parts), "write", "row", scale=True) as bar:
        for rows in _in_order(job.threads, (partial(write, number) for number in range(len(parts)))):
            bar.update(rows)
    for table, words in dictionaries.items():
        with atomic_path(work / "data" / DICTIONARIES / f"{table}.parquet") as temporary:
            pq.write_table(pa.table({"word": words}), temporary)


def _finish(job: _Job, work: Path, parts: Sequence[Mapping[str, Any]], schema: Schema) -> None:
    """Describes the data set and puts it in its place."""
    records = [json.loads((work / "splits" / f"{number:06d}.json").read_text()) for number in range(len(parts))]
    described: dict[str, Any] = {}
    for split in SPLITS:
        files = [record[split] for record in records if split in record]
        described[split] = {
            "rows": sum(file["rows"] for file in files),
            "positives": sum(file["positives"] for file in files),
            "files": files,
        }
    data = work / "data"
    for leftover in data.rglob(".*.tmp"):  # of a run that was killed
        leftover.unlink()
    write_text(data / SCHEMA, schema.to_json())
    _collect_rejects(work, data / _REJECTS)
    manifest = {
        "format": MANIFEST_FORMAT,
        "job": job.identity,
        "source": job.raw.title or [Path(file).name for file in job.files],
        "split": asdict(job.split),
        "rows": sum(part["rows"] for part in parts),
        "rejected": sum(part["rejected"] for part in parts),
        "schema_sha256": sha256(data / SCHEMA),
        "dictionaries": {file.name: sha256(file) for file in sorted((data / DICTIONARIES).glob("*.parquet"))},
        "splits": described,
    }
    write_text(data / MANIFEST, json.dumps(manifest, indent=2))
    if isinstance(job.out, RemotePath):
        publish(data, job.out, last=MANIFEST)
        return
    if job.out.exists():
        # Two renames: a reader finds the old data set or the new one, or for an instant none.
        old = work / "replaced"
        job.out.rename(old)
    data.rename(job.out)
    job.out.with_name(f"{job.out.name}.{_REJECTS}").unlink(missing_ok=True)
