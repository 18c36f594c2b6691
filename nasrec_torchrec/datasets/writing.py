"""Step 3 of preparation: Parquet files for every split, and the data set put in its place."""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nasrec_torchrec.datasets import transform
from nasrec_torchrec.datasets.fitting import Fitted
from nasrec_torchrec.datasets.names import safe_name
from nasrec_torchrec.datasets.pieces import Record, in_order, write_rejects
from nasrec_torchrec.datasets.preparation_job import LINE, SPLIT_KEY, Job
from nasrec_torchrec.datasets.prepared import (
    MANIFEST,
    MANIFEST_FORMAT,
    OURS,
    REJECTS,
    SCHEMA,
    TIME,
    sha256,
    sum_of_tasks,
    write_rows,
)
from nasrec_torchrec.datasets.quality import Quality, useless_dictionaries
from nasrec_torchrec.datasets.repeated import fingerprints, repeated, repetition_warnings
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.datasets.split_counts import SplitCounts, split_warnings
from nasrec_torchrec.datasets.splits import SPLITS
from nasrec_torchrec.datasets.words import DICTIONARIES
from nasrec_torchrec.datasets.work_folder import check_rejects, collect_rejects, read_part, source_contents
from nasrec_torchrec.progress import progress_bar
from nasrec_torchrec.runs.files import atomic_path, remove_leftovers, write_text
from nasrec_torchrec.runs.files import publish as put_in_place


def write_splits(job: Job, work: Path, parts: Sequence[Record], fitted: Fitted) -> list[dict[str, Any]]:
    """Writes the Parquet files and the dictionaries.

    Args:
        job: preparation to run.
        work: its work folder; finished files in it are kept.
        parts: parsed pieces.
        fitted: everything that was measured on the training rows.

    Returns:
        list: For every part, what was written of it by split, and the number of rows that were ``rejected``.

    Raises:
        ValueError: If too many rows are rejected.
    """
    written: list[dict[str, Any]] = []
    with progress_bar(sum(part.rows for part in parts), "write", "row", scale=True) as bar:
        tasks = (partial(_write_part, job, work, parts[number], number, fitted) for number in range(len(parts)))
        for number, record in enumerate(in_order(job.threads, tasks)):
            written.append(record)
            bar.update(parts[number].rows)
    for table, words in fitted.dictionaries.items():
        with atomic_path(work / "data" / DICTIONARIES / f"{safe_name(table)}.parquet") as temporary:
            pq.write_table(pa.table({"word": words}), temporary)
    late = sum(record["rejected"] for record in written)
    if late:
        rows = sum(part.rows for part in parts)
        check_rejects(job, work, rows - late, late + sum(part.rejected for part in parts))
    return written


def publish(
    job: Job, work: Path, parts: Sequence[Record], schema: Schema, written: Sequence[Mapping[str, Any]]
) -> Schema:
    """Describes the data set and puts it in its place.

    Args:
        job: preparation to finish.
        work: its work folder.
        parts: parsed pieces.
        schema: schema with all measured values.
        written: result of :func:`write_splits`.

    Returns:
        Schema: The schema with the fractions of missing and unknown values in the training rows.
    """
    described: dict[str, Any] = {}
    qualities = {}
    for split in SPLITS:
        entries = [record[split] for record in written if split in record]
        qualities[split] = Quality.of(schema, (entry["quality"] for entry in entries))
        described[split] = {
            "rows": sum(entry["file"]["rows"] for entry in entries),
            "positives": sum(entry["file"]["positives"] for entry in entries),
            "files": [entry["file"] for entry in entries],
        }
        if schema.tasks:
            described[split]["tasks"] = sum_of_tasks(described[split]["files"], schema)
    schema = qualities[SPLITS[0]].measured(schema)
    warnings = [
        f"{split}: {warning}" for split in SPLITS[1:] for warning in Quality(schema, qualities[split].counts).warnings()
    ]
    counts = {name: SplitCounts(split["rows"], split["positives"]) for name, split in described.items()}
    counts["train"] = counts["train"].before_sampling(job.split.keep_negatives)
    warnings += [*split_warnings(counts), *_repetitions(work, written), *useless_dictionaries(schema)]
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    data = work / "data"
    remove_leftovers(data)
    write_text(data / SCHEMA, schema.to_json())
    collect_rejects(work, data / REJECTS)
    late = sum(record["rejected"] for record in written)
    found = source_contents(work)
    manifest = {
        "format": MANIFEST_FORMAT,
        "job": (work / "job").read_text(),
        "source": job.raw.title or [file.name for file in job.files],
        "sources": [] if job.raw.identity else found,
        "split": job.split.to_dict(),
        "rows": sum(split["rows"] for split in described.values()),
        "rejected": sum(part.rejected for part in parts) + late,
        "schema_sha256": sha256(data / SCHEMA),
        "dictionaries": {file.name: sha256(file) for file in sorted((data / DICTIONARIES).glob("*.parquet"))},
        "splits": described,
        "quality": {split: quality.to_json() for split, quality in qualities.items()},
        "warnings": warnings,
    }
    if job.split.keep_negatives < 1:
        manifest["left_out"] = sum(part.rows for part in parts) - late - manifest["rows"]
    write_text(data / MANIFEST, json.dumps(manifest, indent=2))
    put_in_place(data, job.out, MANIFEST, make_way=lambda: _set_aside(job.out, data, work / "replaced"))
    job.out.with_name(f"{job.out.name}.{REJECTS}").unlink(missing_ok=True)
    return schema


def _fingerprints(work: Path, number: int, split: str) -> Path:
    return work / "splits" / f"{number:06d}.{split}.npy"


def _repetitions(work: Path, written: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences about rows of the other splits that are also training rows."""
    files = {
        split: [_fingerprints(work, number, split) for number, record in enumerate(written) if split in record]
        for split in SPLITS
    }
    if not all(file.exists() for some in files.values() for file in some):
        return []  # begun by an earlier version
    found = []
    for split in SPLITS[1:]:
        rows, same = repeated([np.load(file) for file in files[split]], map(np.load, files[SPLITS[0]]))
        found += repetition_warnings(split, rows, same)
    return found


def _set_aside(old: Path, data: Path, place: Path) -> None:
    """Moves an earlier data set away; other files in its folder move into the new one.

    Two renames do this, so a reader finds the old data set or the new one, or for an instant none. A run that was
    killed between them finds the earlier data set already set aside.
    """
    for entry in old.iterdir():
        if entry.name not in OURS and not (data / entry.name).exists():
            entry.rename(data / entry.name)
    shutil.rmtree(place, ignore_errors=True)
    old.rename(place)


def _write_part(job: Job, work: Path, part: Record, number: int, fitted: Fitted) -> dict[str, Any]:
    file = work / "splits" / f"{number:06d}.json"
    folder = work / "data"
    if (known := _written(file, folder)) is not None:
        return known
    rows = read_part(work, number)
    lines, assigned = rows.column(LINE).to_numpy(), fitted.assigned[number]
    # Histories of the training rows count what was earlier.
    times = [SPLIT_KEY] if job.split.split == "time" and job.split.split_column else []
    record: dict[str, Any] = {}
    rejects: dict[int, str] = {}
    for index, split in enumerate(SPLITS):
        chosen = assigned == index
        if number and not chosen.any():
            continue
        quality = Quality(fitted.schema)
        table, bad = transform.finish(
            rows.filter(pa.array(chosen)).select([*job.schema.parsed_columns, *times]),
            *(fitted.schema, fitted.dictionaries, quality),
        )
        rejects |= {int(line): reason for line, reason in zip(lines[chosen][list(bad)], bad.values(), strict=True)}
        # An empty split still has a file, which says what its columns are.
        if table.num_rows or number == 0:
            name = folder / split / f"part-{number:06d}.parquet"
            columns = table.select(fitted.schema.columns)
            if times and index == 0:
                columns = columns.append_column(TIME, table.column(SPLIT_KEY))
            # Before the record, which says that the part is finished.
            with atomic_path(_fingerprints(work, number, split)) as temporary, temporary.open("wb") as hashes:
                np.save(hashes, fingerprints(table, fitted.schema))
            record[split] = {"file": write_rows(name, columns, fitted.schema), "quality": quality.to_json()}
    if rejects:
        write_rejects(work / "splits" / f"{number:06d}.rejects", job.files[part.file].uri, rejects)
    record["rejected"] = len(rejects)
    write_text(file, json.dumps(record))
    return record


def _written(file: Path, folder: Path) -> dict[str, Any] | None:
    """The record of a part that was written before; None where there is none, or it or its files are damaged."""
    try:
        record: dict[str, Any] = json.loads(file.read_text())
        entries = {split: record[split]["file"] for split in SPLITS if split in record}
        # The files are gone where a run was killed when the data set was in its place already.
        sound = "rejected" in record and all(
            sha256(folder / split / entry["name"]) == entry["sha256"] for split, entry in entries.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if sound else None
