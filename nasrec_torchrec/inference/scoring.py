"""Scoring files with an exported package: prepared rows, or raw ones with the manifest's transformations."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from nasrec_torchrec.datasets import sources, transform
from nasrec_torchrec.datasets.click_data import ClickData
from nasrec_torchrec.datasets.config import TextFormat
from nasrec_torchrec.datasets.prepared import DICTIONARIES, read_dictionary, sha256
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.datasets.sources import Piece
from nasrec_torchrec.inference.config import ScoringConfig
from nasrec_torchrec.inference.predictor import MANIFEST, Predictor, Request
from nasrec_torchrec.progress import progress_bar
from nasrec_torchrec.runs.files import atomic_path, local_copy, remove, write_text
from nasrec_torchrec.runs.paths import to_path

_KEY = b"nasrec-torchrec"


def score(
    package: Path, files: Sequence[str], out: Path, config: ScoringConfig, text_format: TextFormat | None = None
) -> dict[str, int]:
    """Scores rows, and writes files of them in the same order; one that was killed goes on where it was.

    Every scored row has its ``file``, its ``line`` there (of Parquet: its row, counted from 1), the columns to keep,
    and its ``probability``. Raw rows that cannot be read are in ``_rejects.jsonl``, with line and reason;
    what reads a folder as one table, as PyArrow and Spark do, passes over names like this.

    Args:
        package: folder that ``apps.export`` wrote.
        files: paths and URIs, ``*`` allowed, or folders of Parquet files.
        out: folder that receives ``part-000000.parquet``, ...
        config: how.
        text_format: of raw text files.

    Returns:
        dict: how many rows were scored, and how many rejected.

    Raises:
        ValueError: when the package or a file cannot be read, or ``out`` holds scores of something else.
    """
    predictor = Predictor(package)
    job = _Job(predictor, package, _expand(files), config, text_format or TextFormat())
    if config.overwrite and out.exists():
        remove(out)
    done = _done(out, job.identity)
    sizes = [sources.size_of(file) for file in job.files]
    with progress_bar(sum(sizes), "score", "B", scale=True) as bar:
        for index, file in enumerate(job.files):
            names, start = _columns(file, job.text_format)
            line = 2 if start else 1
            last = [part for part in done if part["file"] == index]
            if last:
                start, line = last[-1]["end"], last[-1]["next_line"]
            if not (config.raw or sources.is_parquet(file)):
                raise ValueError(f"{file}: prepared rows are Parquet files; --raw true transforms raw ones")
            sources.check_source(file, job.wanted(names), job.text_format)
            for piece in job.pieces(file, names, start, line):
                done.append(job.score(piece, file, index, names, out, len(done)))
                bar.update(sum(sizes[:index]) + piece.progress - bar.n)
                rows = sum(part["rows"] for part in done)
                bar.set_postfix_str(f"{rows / max(bar.format_dict['elapsed'], 1e-9):,.0f} rows/s", refresh=False)
            bar.update(sum(sizes[: index + 1]) - bar.n)
    if not done:
        raise ValueError(f"{', '.join(job.files[:3])}: no row found")
    rejects = "".join(file.read_text() for file in sorted(out.glob("_part-*.rejects")))
    if rejects:
        write_text(out / "_rejects.jsonl", rejects)
    return {key: sum(part[key] for part in done) for key in ("rows", "rejected")}


def read_dictionaries(package: Path, schema: Schema) -> dict[str, pa.Array]:
    """The words of dictionary ids.

    Raises:
        ValueError: when the package has none, though its model needs them.
    """
    found = {}
    for table in {feature.table for feature in schema.sparse if feature.ids in ("dictionary", "history")}:
        try:
            found[table] = read_dictionary(package / DICTIONARIES / f"{table}.parquet")
        except ValueError as error:
            raise ValueError(f"{error}; export with --data to have it") from None
    return found


def requests(data: ClickData, predictor: Predictor, batch_size: int) -> Iterator[Request]:
    """Successive rows as requests."""
    for rows in torch.arange(len(data)).split(batch_size):
        batch = data.select(rows)
        sparse = batch.sparse_features
        yield Request(
            sparse.values(),
            sparse.lengths().view(len(sparse.keys()), -1).long(),
            batch.dense_features if predictor.dense_features else None,
            sparse.weights_or_none(),
        )


class _Job:
    """What to score, and how."""

    def __init__(
        self, predictor: Predictor, package: Path, files: list[str], config: ScoringConfig, text_format: TextFormat
    ) -> None:
        self.predictor, self.files, self.config, self.text_format = predictor, files, config, text_format
        self.schema = Schema.from_json(json.dumps(predictor.manifest["schema"]))
        self.dictionaries = read_dictionaries(package, self.schema) if config.raw else {}
        kept = {name: value for name, value in asdict(config).items() if name not in ("batch_size", "overwrite")}
        description = [sha256(package / MANIFEST), files, [sources.size_of(file) for file in files], kept]
        self.identity = hashlib.sha256(json.dumps([*description, asdict(text_format)]).encode()).hexdigest()

    def wanted(self, names: Sequence[str]) -> list[str]:
        """Columns to read of those that there are; a label is not needed."""
        available = self.schema.raw_columns if self.config.raw else self.schema.columns
        columns = [name for name in available if name != self.schema.label or name in names]
        return list(dict.fromkeys([*columns, *self.config.keep]))

    def pieces(self, file: str, names: Sequence[str], start: int, line: int) -> Iterator[Piece]:
        if sources.is_parquet(file):
            return sources.parquet_pieces(file, self.config.piece_mib << 13, start, self.wanted(names))
        return sources.text_pieces(file, self.config.piece_mib << 20, start, line)

    def score(
        self, piece: Piece, file: str, index: int, names: Sequence[str], out: Path, number: int
    ) -> dict[str, Any]:
        """Writes one file of scores, and returns what it says about itself."""
        where = f"{file}: line {piece.first_line} and after"
        refused: dict[int, str] = {}
        if isinstance(piece.data, bytes):
            table, lines, refused = sources.read_lines(piece, names, self.wanted(names), self.text_format)
            next_line = piece.first_line + piece.data.count(b"\n")
        else:
            table = piece.data
            next_line = piece.first_line + table.num_rows
            lines = np.arange(piece.first_line, next_line)
        label = self.schema.label
        kept = self.config.keep or ((label,) if label in table.column_names else ())
        copied = table.select(kept)
        if label not in table.column_names:
            table = table.append_column(label, pa.array(np.zeros(table.num_rows, np.int8)))
        try:
            if self.config.raw:
                table, bad = transform.parse(table, self.schema)
                table = transform.finish(table, self.schema, self.dictionaries)
                refused |= {int(lines[row]): reason for row, reason in bad.items()}
                good = np.delete(np.arange(copied.num_rows), list(bad))
                lines, copied = lines[good], copied.take(pa.array(good))
            data = ClickData.from_table(table, self.schema, where)
        except ValueError as error:
            raise ValueError(f"{where}: {error}" if file not in str(error) else str(error)) from None
        parts = [self.predictor.predict(request) for request in requests(data, self.predictor, self.config.batch_size)]
        scores = pa.table(
            {
                "file": pa.array([file] * len(lines)).dictionary_encode(),
                "line": lines,
                **{name: _readable(copied.column(name)) for name in kept},
                "probability": torch.cat(parts).numpy() if parts else np.empty(0, np.float32),
            }
        )
        record = {
            "job": self.identity,
            "file": index,
            "end": piece.end,
            "next_line": next_line,
            "rows": len(lines),
            "rejected": len(refused),
        }
        rejects = [{"file": file, "line": line, "reason": reason} for line, reason in sorted(refused.items())]
        target = out / f"part-{number:06d}.parquet"
        # The scores last: they say that the piece is done.
        if rejects:
            write_text(
                target.with_name(f"_{target.stem}.rejects"), "".join(json.dumps(entry) + "\n" for entry in rejects)
            )
        with atomic_path(target) as temporary:
            pq.write_table(scores.replace_schema_metadata({_KEY: json.dumps(record)}), temporary)
        return record


def _expand(patterns: Sequence[str]) -> list[str]:
    files: list[str] = []
    for pattern in patterns:
        folder = to_path(pattern)
        found = sorted(map(str, folder.glob("*.parquet"))) if folder.is_dir() else sources.expand([pattern])
        if not found:
            raise ValueError(f"{pattern}: no Parquet file found")
        files += found
    return files


def _done(out: Path, identity: str) -> list[dict[str, Any]]:
    """What the finished files of an earlier run say, in order."""
    records: list[dict[str, Any]] = []
    while (file := out / f"part-{len(records):06d}.parquet").exists():
        try:
            record = json.loads((pq.read_schema(local_copy(file)).metadata or {}).get(_KEY, b"{}"))
        except (OSError, ValueError) as error:  # also what Arrow raises
            raise ValueError(f"{file}: cannot be read; --overwrite true replaces it: {error}") from None
        if record.get("job") != identity:
            raise ValueError(f"{out}: holds scores of something else; choose another --out, or --overwrite true")
        records.append(record)
    return records


def _columns(file: str, text_format: TextFormat) -> tuple[tuple[str, ...], int]:
    """Names of the columns of a file, and the bytes of its header."""
    if not sources.is_parquet(file):
        return sources.header(file, text_format)
    with sources.open_uri(file) as opened:
        try:
            return tuple(pq.read_schema(opened).names), 0
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file}: not a readable Parquet file: {error}") from None


def _readable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text that was read as bytes, as text again."""
    return column.cast(pa.string()) if pa.types.is_binary(column.type) else column
