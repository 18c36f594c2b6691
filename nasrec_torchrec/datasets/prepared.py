"""A prepared data set on disk.

``schema.json``, ``manifest.json`` (rows, positives and a checksum per file), ``train/``, ``validation/`` and ``test/``
with Parquet files, ``dictionaries/`` with the words that ids stand for, and ``rejects.jsonl``.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.datasets.splits import SPLITS
from nasrec_torchrec.runs.files import atomic_path, read_text

SCHEMA, MANIFEST, DICTIONARIES = "schema.json", "manifest.json", "dictionaries"
MANIFEST_FORMAT = "nasrec-torchrec/dataset/1"
# Rows that are decoded, checked and shuffled together.
ROW_GROUP = 65_536


def write_rows(file: Path, rows: pa.Table, label: str) -> dict[str, Any]:
    """Writes prepared rows as one Parquet file, and returns its entry in the manifest."""
    with atomic_path(file) as temporary:
        pq.write_table(rows, temporary, row_group_size=ROW_GROUP, compression="zstd", compression_level=1)
    positives = pc.sum(rows.column(label)).as_py() or 0
    return {
        "name": file.name,
        "rows": rows.num_rows,
        "positives": int(positives),
        "bytes": file.stat().st_size,
        "sha256": sha256(file),
    }


def sha256(file: Path) -> str:
    """Checksum of a file's content."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared data set.

    Raises:
        ValueError: when there is none or it is damaged.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not a JSON document: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != MANIFEST_FORMAT:
        raise ValueError(f"{path}: expected a manifest of format '{MANIFEST_FORMAT}'")
    return manifest


def load_schema(folder: Path, embedding_dim: int | None = None) -> Schema:
    """The schema of a prepared data set.

    Args:
        folder: of the data set.
        embedding_dim: of all tables, instead of the data set's own.

    Raises:
        ValueError: when there is none or it is damaged.
    """
    schema = Schema.read(folder / SCHEMA)
    return schema if embedding_dim is None else replace(schema, embedding_dim=embedding_dim)


def open_split(folder: Path, split: str) -> ClickFiles:
    """One split of a prepared data set.

    Raises:
        ValueError: for an unknown split, or a file that does not fit the schema.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {list(SPLITS)}, found {split!r}")
    return ClickFiles.open(folder / split, load_schema(folder))


def read_dictionary(file: Path) -> pa.Array:
    """The words of a dictionary; those of a history as a struct with their counts.

    Raises:
        ValueError: when it cannot be read.
    """
    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{file}: cannot be read: {error}") from None
    if table.num_columns == 1:
        return table.column(0).combine_chunks()
    return table.combine_chunks().to_struct_array().combine_chunks()
