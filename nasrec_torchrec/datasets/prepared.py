"""A prepared data set on disk.

``schema.json``, ``manifest.json`` (rows, positives and a checksum per file), ``train/``, ``validation/`` and ``test/``
with Parquet files, ``dictionaries/`` with the words that ids stand for, and ``rejects.jsonl``.

The manifest says which files there are. Whatever opens a data set compares their names and sizes with it, and their
checksums when their rows are read.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nasrec_torchrec.datasets.checksums import sha256
from nasrec_torchrec.datasets.names import INTERNAL
from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.datasets.splits import SPLITS
from nasrec_torchrec.datasets.words import DICTIONARIES
from nasrec_torchrec.messages import why
from nasrec_torchrec.runs.files import atomic_path, local_copy, read_text
from nasrec_torchrec.runs.fingerprint import digest
from nasrec_torchrec.runs.record import CONFIG

SCHEMA, MANIFEST, REJECTS = "schema.json", "manifest.json", "rejects.jsonl"
PICTURE = "statistics.png"
# What the folder of a data set holds; anything else in it belongs to someone else.
OURS = frozenset((*SPLITS, SCHEMA, MANIFEST, DICTIONARIES, REJECTS, PICTURE, CONFIG))
# Column of the training rows that holds the time of each row, if the data was split by one.
TIME = f"{INTERNAL}time"
MANIFEST_FORMAT = "nasrec-torchrec/dataset/2"
# This version does not record what the source files held; everything else is the same.
EARLIER_FORMAT = "nasrec-torchrec/dataset/1"
# Rows that are decoded, checked and shuffled together.
ROW_GROUP = 65_536


def write_rows(file: Path, rows: pa.Table, schema: Schema) -> dict[str, Any]:
    """Writes prepared rows as one Parquet file.

    Args:
        file: file to write.
        rows: prepared rows.
        schema: which columns are labels and weights.

    Returns:
        Its entry in the manifest: rows, positives and, where there are such, the sum of the rows' weights; of each
        task, the rows whose label is known, and the positives among them.
    """
    with atomic_path(file) as temporary:
        pq.write_table(
            rows,
            temporary,
            row_group_size=ROW_GROUP,
            compression="zstd",
            compression_level=1,
            write_page_checksum=True,
        )
    positives = pc.sum(rows.column(schema.label)).as_py() or 0
    entry: dict[str, Any] = {
        "name": file.name,
        "rows": rows.num_rows,
        "positives": int(positives),
        "bytes": file.stat().st_size,
        "sha256": sha256(file),
    }
    if schema.weight is not None:
        entry["weights"] = float(rows.column(schema.weight).to_numpy().sum(dtype=np.float64))
    if schema.tasks:
        found = {task.name: rows.column(task.name) for task in schema.tasks}
        entry["tasks"] = {
            name: {"rows": len(column) - column.null_count, "positives": pc.sum(column).as_py() or 0}
            for name, column in found.items()
        }
    return entry


def sum_of_tasks(entries: Sequence[Mapping[str, Any]], schema: Schema) -> dict[str, dict[str, int]]:
    """Adds up what the entries of files in the manifest say of each task."""
    return {
        task.name: {key: sum(entry["tasks"][task.name][key] for entry in entries) for key in ("rows", "positives")}
        for task in schema.tasks
    }


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads the manifest of a prepared data set.

    Raises:
        ValueError: If there is none, or it is damaged.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON document: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") not in (MANIFEST_FORMAT, EARLIER_FORMAT):
        raise ValueError(f"{path}: expected a manifest of format '{MANIFEST_FORMAT}'")
    types = {"job": str, "rows": int, "rejected": int, "schema_sha256": str, "dictionaries": dict, "splits": dict}
    _check_types(manifest, types, str(path))
    for name, checksum in manifest["dictionaries"].items():
        _check_file_name(name, f"{path}: dictionaries")
        _check_types({"sha256": checksum}, {"sha256": str}, f"{path}: dictionaries: {name}")
    _check_types(manifest["splits"], dict.fromkeys(SPLITS, dict), f"{path}: splits")
    for split in SPLITS:
        described, where = manifest["splits"][split], f"{path}: splits: {split}"
        _check_types(described, {"rows": int, "positives": int, "files": list}, where)
        for file in described["files"]:
            _check_types(file, {"name": str, "rows": int, "positives": int, "bytes": int, "sha256": str}, where)
            _check_file_name(file["name"], where)
            if "weights" in file:
                _check_types(file, {"weights": float}, where)
    return manifest


def data_warnings(folder: Path) -> list[str]:
    """Returns what the preparation of a data set has warned of; nothing where an earlier version prepared it."""
    found = read_manifest(folder).get("warnings", [])
    return [str(warning) for warning in found] if isinstance(found, list) else []


def check_files(folder: Path) -> None:
    """Compares the names and sizes of all files of a data set with its manifest.

    Raises:
        ValueError: names a file that is missing, that is there in addition, or has another size.
    """
    manifest = read_manifest(folder)
    for split in SPLITS:
        check_split(folder, split, manifest)
    load_schema(folder)
    for name in manifest["dictionaries"]:
        if not (folder / DICTIONARIES / name).exists():
            raise ValueError(f"{folder / DICTIONARIES / name}: is missing")


def load_schema(folder: Path, embedding_dim: int | None = None, tasks: bool = False) -> Schema:
    """Reads the schema of a prepared data set.

    Args:
        folder: folder of the data set.
        embedding_dim: width of all tables, in place of the data set's own.
        tasks: whether to keep the labels besides the first; whoever knows nothing of them gets one label a row.

    Returns:
        The schema.

    Raises:
        ValueError: If there is none, or it is not the one that the manifest describes.
    """
    schema = Schema.read(folder / SCHEMA, embedding_dim)
    check_sum(folder / SCHEMA, read_manifest(folder)["schema_sha256"])
    return schema if tasks else schema.without_tasks()


def label_alone(folder: Path) -> str | None:
    """Returns what a job that reads the first label alone says where a data set has several; None where it has one."""
    first, *others = load_schema(folder, tasks=True).labels
    if not others:
        return None
    return f"{folder}: of its labels, '{first}' alone is read here, and not {', '.join(map(repr, others))}"


def open_split(folder: Path, split: str, tasks: bool = False) -> ClickFiles:
    """Opens a split of a prepared data set. Its files are compared with their checksums when they are read.

    Args:
        folder: folder of the data set.
        split: ``train``, ``validation`` or ``test``.
        tasks: whether to read the labels besides the first, see :func:`load_schema`.

    Raises:
        ValueError: If the split is unknown or has no rows, a file is missing, or there is a file that the manifest does
            not list, that has another size or that does not fit the schema.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {list(SPLITS)}, found {split!r}")
    schema, manifest = load_schema(folder, tasks=tasks), read_manifest(folder)
    described = manifest["splits"][split]
    if not described["rows"]:
        raise ValueError(
            f"{folder / split}: the {split} split has no rows; prepare the data with rows for it "
            "(for the split by time, a share above 0)"
        )
    check_split(folder, split, manifest)
    files = ClickFiles.open(folder / split, schema, {file["name"]: file["sha256"] for file in described["files"]})
    dictionaries = tuple(sorted(manifest["dictionaries"].items()))
    kept = float(manifest.get("split", {}).get("keep_negatives", 1.0)) if split == SPLITS[0] else 1.0
    sums = [file["weights"] for file in described["files"] if "weights" in file]
    weights = math.fsum(sums) if schema.weight is not None and len(sums) == len(described["files"]) else None
    return replace(
        files,
        dictionaries=dictionaries,
        clicks=described["positives"],
        keep_negatives=kept,
        weights=weights,
        warnings=tuple(data_warnings(folder)),
    )


def digest_of(folder: Path, split: str) -> str:
    """Returns the ``digest`` of the :class:`~nasrec_torchrec.datasets.reader.ClickFiles` of a split.

    It comes from the manifest: no file of the split is opened, or fetched if it lies in remote storage.
    """
    files = sorted(read_manifest(folder)["splits"][split]["files"], key=lambda file: str(file["name"]))
    return digest([file["sha256"] for file in files])


def check_dictionaries(folder: Path) -> None:
    """Compares the dictionaries of a data set with their checksums.

    Raises:
        ValueError: If one is missing or was changed. The message names it.
    """
    for name, checksum in read_manifest(folder)["dictionaries"].items():
        check_sum(folder / DICTIONARIES / name, checksum)


def check_split(folder: Path, split: str, manifest: Mapping[str, Any]) -> None:
    """Compares the names and sizes of a split's files with the manifest.

    Raises:
        ValueError: names a file that is missing, that is there in addition, or has another size.
    """
    expected = {file["name"]: file["bytes"] for file in manifest["splits"][split]["files"]}
    found = {file.name: file for file in (folder / split).glob("*.parquet")}
    for name, size in expected.items():
        if name not in found:
            raise ValueError(f"{folder / split / name}: is missing, though {MANIFEST} tells of it")
        there = local_copy(found[name]).stat().st_size
        if there != size:
            raise ValueError(f"{found[name]}: expected {size:,} bytes as {MANIFEST} says, found {there:,}")
    for name in sorted(set(found) - set(expected)):
        raise ValueError(f"{found[name]}: is none of the files that {MANIFEST} tells of")


def check_sum(file: Path, expected: str) -> None:
    """Raises ValueError if the content of a file does not match its checksum in the manifest."""
    try:
        found = sha256(file)
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {why(error)}") from None
    if found != expected:
        raise ValueError(f"{file}: was changed or is damaged: its checksum is not that of {MANIFEST}")


def _check_types(document: Any, types: Mapping[str, type], where: str) -> None:
    if not isinstance(document, dict):
        raise ValueError(f"{where}: expected an object with the keys {list(types)}, found {type(document).__name__}")
    for key, kind in types.items():
        if type(document.get(key)) is not kind:
            raise ValueError(f"{where}: {key}: expected {kind.__name__}, found {document.get(key)!r:.60}")


def _check_file_name(name: str, where: str) -> None:
    if not name or "/" in name or "\\" in name or name.startswith("."):
        raise ValueError(f"{where}: expected the name of a file in this folder, found {name!r}")
