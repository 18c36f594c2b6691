"""Crosses added to a prepared data set: combinations of categorical features as features of their own.

A cross of ``user`` and ``item`` has an id for every pair in the training split (``ids: dictionary``), or a hash of the
pair (``ids: hash``). It is computed from the *prepared* ids of its features, so whoever has those, online or offline,
needs nothing but the cross's dictionary. A schema with crosses works everywhere: preparation of raw data counts their
pairs, ``score --raw`` computes them, and a package's ``dictionaries/`` holds them.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nasrec_torchrec.datasets import buckets, history, transform
from nasrec_torchrec.datasets.checksums import sha256
from nasrec_torchrec.datasets.features import FIRST_WORD, SparseFeature
from nasrec_torchrec.datasets.fitting import count_words
from nasrec_torchrec.datasets.names import safe_name
from nasrec_torchrec.datasets.prepared import (
    MANIFEST,
    SCHEMA,
    TIME,
    check_dictionaries,
    check_files,
    check_sum,
    load_schema,
    read_manifest,
    write_rows,
)
from nasrec_torchrec.datasets.quality import Quality
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.datasets.splits import SPLITS
from nasrec_torchrec.datasets.words import DICTIONARIES
from nasrec_torchrec.runs.files import atomic_path, write_text


def cross_of(features: Sequence[str], largest: int | None = None, min_count: int = 1) -> SparseFeature:
    """Returns a cross of some features with a dictionary, named after them.

    Args:
        features: names of two or more features.
        largest: largest number of rows of its table, which go to the most frequent combinations.
        min_count: smallest number of occurrences in the training split for which a combination gets a row.
    """
    return SparseFeature("_x_".join(features), largest, "dictionary", min_count, cross=tuple(features))


def history_of(features: Sequence[str]) -> SparseFeature:
    """Returns the history of a feature, or of a combination of features."""
    name = "history_of_" + "_x_".join(features)
    return SparseFeature(name, ids="history", cross=tuple(features))


def add_crosses(data: Path, out: Path, crosses: Sequence[SparseFeature]) -> Schema:
    """Writes a copy of a prepared data set with additional columns; ``out`` appears once it is complete.

    Args:
        data: prepared data set on this machine.
        out: folder to write. If it already holds the same data set, it is kept.
        crosses: crosses to add to the schema.

    Returns:
        Schema: The schema with the crosses and the sizes of their tables.

    Raises:
        ValueError: If a cross does not fit the schema, or ``out`` holds something else.
    """
    check_files(data)
    check_dictionaries(data)
    manifest = read_manifest(data)
    for split in SPLITS:  # what is read here gets new checksums
        for file in manifest["splits"][split]["files"]:
            check_sum(data / split / file["name"], file["sha256"])
    schema = load_schema(data, tasks=True)
    whole = replace(schema, sparse=(*schema.sparse, *crosses))
    job = hashlib.sha256(json.dumps([manifest["job"], whole.to_dict()]).encode()).hexdigest()
    if (out / MANIFEST).exists():
        if read_manifest(out)["job"] != job:
            raise ValueError(f"{out}: holds another data set than {data} with the crosses {[c.name for c in crosses]}")
        return load_schema(out, tasks=True)
    temporary = out.with_name(f".{out.name}.crossing")
    shutil.rmtree(temporary, ignore_errors=True)
    if (data / DICTIONARIES).exists():
        shutil.copytree(data / DICTIONARIES, temporary / DICTIONARIES)
    train = sorted((data / SPLITS[0]).glob("*.parquet"))
    dictionaries: dict[str, pa.Array] = {}
    training: dict[str, dict[int, pa.Array]] = {}
    for table, sharing in whole.features_by_table().items():
        if sharing[0] not in crosses or sharing[0].ids == "hash":
            continue
        if sharing[0].ids == "buckets":
            columns = [pq.read_table(file, columns=list(sharing[0].cross)).column(0).to_numpy() for file in train]
            edged = buckets.edged(sharing[0], np.concatenate(columns))
            whole = replace(whole, sparse=tuple(edged if f == sharing[0] else f for f in whole.sparse))
            continue
        if sharing[0].ids == "dictionary":
            dictionaries[table] = _count(train, sharing)
            rows = sharing[0].num_embeddings or len(dictionaries[table]) + FIRST_WORD
            whole = replace(
                whole, sparse=tuple(replace(f, num_embeddings=rows) if f.table == table else f for f in whole.sparse)
            )
            words = pa.table({"word": dictionaries[table]})
        else:
            read = partial(_labelled, train, sharing[0], schema.label)
            dictionaries[table] = history.count(read(number) for number in range(len(train)))
            for feature in sharing:
                training[feature.name] = _training_ids(train, manifest["split"], read, dictionaries[table])
            words = pa.Table.from_struct_array(dictionaries[table])
        with atomic_path(temporary / DICTIONARIES / f"{safe_name(table)}.parquet") as file:
            pq.write_table(words, file)
    added = [feature for feature in whole.crosses if feature.name in {cross.name for cross in crosses}]
    described: dict[str, Any] = {}
    counted: dict[str, Quality] = {}
    for split in SPLITS:
        files = []
        counted[split] = Quality(whole)
        for number, file in enumerate(sorted((data / split).glob("*.parquet"))):
            rows_of = transform.add_crosses(pq.read_table(file), added, dictionaries)
            for name, ids in training.items() if split == SPLITS[0] else ():
                rows_of = rows_of.set_column(rows_of.schema.get_field_index(name), name, ids[number])
            counted[split].add(rows_of)
            files.append(write_rows(temporary / split / file.name, rows_of, schema))
        described[split] = manifest["splits"][split] | {"files": files}
    # What was counted of the other features before they were filled in is known already.
    measured = {feature.name: feature for feature in counted[SPLITS[0]].measured(whole).crosses}
    whole = replace(whole, sparse=tuple(measured.get(feature.name, feature) for feature in whole.sparse))
    names = [feature.name for feature in added]
    qualities = {
        split: manifest.get("quality", {}).get(split, {}) | {name: quality.to_json()[name] for name in names}
        for split, quality in counted.items()
    }
    write_text(temporary / SCHEMA, whole.to_json())
    manifest |= {
        "job": job,
        "schema_sha256": sha256(temporary / SCHEMA),
        "dictionaries": {file.name: sha256(file) for file in sorted((temporary / DICTIONARIES).glob("*.parquet"))},
        "splits": described,
        "quality": qualities,
    }
    write_text(temporary / MANIFEST, json.dumps(manifest, indent=2))
    temporary.rename(out)
    return whole


def _training_ids(
    files: Sequence[Path],
    split: Mapping[str, Any],
    read: Callable[[int], tuple[pa.Array, np.ndarray]],
    counts: pa.StructArray,
) -> dict[int, pa.Array]:
    """Returns what the training rows read of a history, by the time of each row if the data was split by time."""
    if split["split"] != "time":
        return history.shuffled_ids(read, len(files), counts)
    if split["split_column"] is None:
        return history.earlier_ids(read, len(files), counts)

    def times(number: int) -> np.ndarray:
        return pq.read_table(files[number], columns=[TIME]).column(0).to_numpy()

    if any(TIME not in pq.read_schema(file).names for file in files):
        print(
            f"warning: {files[0].parent.parent}: was prepared by an earlier version, without the times of its rows; "
            "histories count the rows in a shuffled order; to fix this, prepare the data again with --overwrite true",
            file=sys.stderr,
        )
        return history.shuffled_ids(read, len(files), counts)
    return history.earlier_ids(read, len(files), counts, times)


def _count(files: Sequence[Path], crosses: Sequence[SparseFeature]) -> pa.Array:
    """Returns the combinations in the training split, the most frequent first."""
    inputs = list(dict.fromkeys(name for cross in crosses for name in cross.cross))

    def values(number: int, cross: SparseFeature) -> pa.ChunkedArray:
        return pa.chunked_array([transform.combine(pq.read_table(files[number], columns=inputs), cross)])

    rows = [np.ones(pq.read_metadata(file).num_rows, bool) for file in files]
    words = count_words(values, crosses, rows)
    largest = crosses[0].num_embeddings
    return words if largest is None else words[: largest - FIRST_WORD]


def _labelled(files: Sequence[Path], cross: SparseFeature, label: str, number: int) -> tuple[pa.Array, np.ndarray]:
    """Returns the combinations in a file, and the labels."""
    table = pq.read_table(files[number], columns=[*cross.cross, label])
    return transform.combine(table, cross), table.column(label).to_numpy()
