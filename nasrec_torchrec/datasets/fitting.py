"""Step 2 of preparation: the split of every row, and what is measured on the training rows."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nasrec_torchrec.datasets import buckets, splits, transform
from nasrec_torchrec.datasets.features import FIRST_WORD, DenseFeature, SparseFeature
from nasrec_torchrec.datasets.pieces import Record
from nasrec_torchrec.datasets.preparation_job import SPLIT_KEY, Job
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.datasets.values import is_list
from nasrec_torchrec.datasets.work_folder import read_part
from nasrec_torchrec.progress import progress_bar

# A deviation this small relative to the mean is the rounding error of equal numbers.
_ROUNDING = 1e-13


@dataclass(frozen=True)
class Fitted:
    """What was measured on the training rows.

    Args:
        schema: schema with all measured values.
        dictionaries: words in the order of their ids, by table.
        assigned: for every part, the split of each row as an index into ``SPLITS``.
    """

    schema: Schema
    dictionaries: Mapping[str, pa.Array]
    assigned: Sequence[np.ndarray]


def fit(job: Job, work: Path, parts: Sequence[Record]) -> Fitted:
    """Assigns rows to splits, and measures the training rows.

    Raises:
        ValueError: If the split leaves train without a row.
    """
    labels = _all(work, parts, job.schema.label, np.int8)
    key = None
    if job.split.split_column or job.split.split == "given":
        key = _all(work, parts, SPLIT_KEY, np.float64 if job.split.split == "time" else np.uint8)
    assigned = np.split(splits.assign(job.split, labels, key), np.cumsum([part.rows for part in parts])[:-1])
    train = [rows == 0 for rows in assigned]
    _say_what_is_odd(labels, np.concatenate(assigned), key if job.split.split == "time" else None)

    schema = job.schema
    dictionaries: dict[str, pa.Array] = {}
    # A cross combines the ids of other features, so its words are counted once theirs are numbered.
    tables = sorted(schema.features_by_table().items(), key=lambda table: bool(table[1][0].cross))
    counted = {name: features for name, features in tables if features[0].ids == "dictionary"}
    with progress_bar(len(counted) + len(schema.dense), "fit", "column") as bar:
        dense = []
        for feature in schema.dense:
            dense.append(_scaled(work, feature, train) if feature.transform == "standardize" else feature)
            bar.update()
        by_name = {feature.name: feature for feature in dense}
        edged = {
            feature.name: buckets.edged(feature, _prepared(work, by_name[feature.cross[0]], train))
            for feature in schema.sparse
            if feature.ids == "buckets"
        }
        schema = replace(schema, sparse=tuple(edged.get(feature.name, feature) for feature in schema.sparse))
        rows: dict[str, int] = {}
        for table, features in counted.items():
            known = replace(schema, sparse=tuple(_numbered(feature, rows) for feature in schema.sparse))
            words = count_words(partial(_values, work, known, dictionaries), features, train)
            if features[0].num_embeddings is not None:
                words = words[: features[0].num_embeddings - FIRST_WORD]
            dictionaries[table] = words
            rows[table] = features[0].num_embeddings or len(words) + FIRST_WORD
            bar.update()
    sparse = tuple(_numbered(feature, rows) for feature in schema.sparse)
    return Fitted(replace(schema, dense=tuple(dense), sparse=sparse), dictionaries, assigned)


def count_words(
    values_of: Callable[[int, SparseFeature], pa.ChunkedArray],
    features: Sequence[SparseFeature],
    train: Sequence[np.ndarray],
) -> pa.Array:
    """Counts the words of the training rows, sorted by descending frequency and then alphabetically.

    Args:
        values_of: function that returns a feature's values in a part.
        features: features that share the dictionary.
        train: for every part, which of its rows are training rows.
    """
    total = pa.table({"word": pa.array([], pa.string()), "count": pa.array([], pa.int64())})
    waiting: list[pa.Table] = []
    for number, rows in enumerate(train):
        for feature in features:
            values = values_of(number, feature).filter(pa.array(rows))
            if is_list(values.type):
                values = pc.list_flatten(values)
            counts = pc.value_counts(values.drop_null())
            waiting.append(pa.table({"word": counts.field("values"), "count": counts.field("counts")}))
        # The cost of merging grows with the length of the total, so merge only once as much is waiting.
        if number == len(train) - 1 or sum(len(table) for table in waiting) >= max(len(total), 1 << 20):
            merged = pa.concat_tables([total, *waiting]).group_by("word", use_threads=False)
            total = merged.aggregate([("count", "sum")]).rename_columns(["word", "count"])
            waiting = []
    total = total.filter(pc.greater_equal(total.column("count"), features[0].min_count))
    total = total.sort_by([("count", "descending"), ("word", "ascending")])
    return total.column("word").combine_chunks()


def _numbered(feature: SparseFeature, rows: Mapping[str, int]) -> SparseFeature:
    """Returns the feature with the size of its table, if that is already counted."""
    return replace(feature, num_embeddings=rows.get(feature.table, feature.num_embeddings))


def _values(
    work: Path, schema: Schema, dictionaries: Mapping[str, pa.Array], number: int, feature: SparseFeature
) -> pa.ChunkedArray:
    """Returns the values in a part that a feature's dictionary counts."""
    if not feature.cross:
        return read_part(work, number, [feature.name]).column(0)
    inputs = tuple(other for other in schema.sparse if other.name in feature.cross)
    of_inputs = replace(schema, dense=(), sparse=inputs)
    table, _ = transform.finish(read_part(work, number, of_inputs.parsed_columns), of_inputs, dictionaries)
    return pa.chunked_array([transform.combine(table, feature)])


def _all(work: Path, parts: Sequence[Record], column: str, kind: type) -> np.ndarray:
    return np.concatenate(
        [read_part(work, number, [column]).column(0).to_numpy().astype(kind) for number in range(len(parts))]
    )


def _scaled(work: Path, feature: DenseFeature, train: Sequence[np.ndarray]) -> DenseFeature:
    """Returns the feature with mean and deviation of its numbers; 0 and 1 for a column without any.

    The deviation of a constant column is set to 1, so that another value in a later row remains an ordinary number.
    """

    def known() -> Iterator[np.ndarray]:
        for number, rows in enumerate(train):
            values = read_part(work, number, [feature.name]).column(0).to_numpy()[rows]
            yield values[~np.isnan(values)]

    count = sum(len(values) for values in known())
    mean = sum(float(values.sum()) for values in known()) / max(count, 1)
    variance = sum(float(np.square(values - mean).sum()) for values in known()) / max(count, 1)
    deviation = float(np.sqrt(variance))
    if not np.isfinite(mean) or not np.isfinite(deviation):
        raise ValueError(f"column '{feature.name}': its numbers are too large to standardize")
    if deviation <= _ROUNDING * abs(mean) or deviation == 0:
        if count:
            # The mean of equal numbers is one of them, not what rounding makes of their sum.
            mean = float(next(values[0] for values in known() if len(values)))
            print(f"warning: '{feature.name}': all training rows with a value have {mean:g}", file=sys.stderr)
        deviation = 1.0
    return replace(feature, mean=mean, deviation=deviation)


def _prepared(work: Path, feature: DenseFeature, train: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the prepared numbers of the training rows."""
    parts = [read_part(work, number, [feature.name]).column(0).to_numpy()[rows] for number, rows in enumerate(train)]
    numbers = np.concatenate(parts)
    return transform.filled(
        transform.standardized(feature, numbers, {}) if feature.transform == "standardize" else numbers
    )


def _say_what_is_odd(labels: np.ndarray, assigned: np.ndarray, times: np.ndarray | None) -> None:
    """Warns of data that can be trained on but will not give the expected result."""
    train = labels[assigned == 0]
    if len(train) and train.min() == train.max():
        print(f"warning: all {len(train):,} training rows have the label {train[0]}", file=sys.stderr)
    for index, name in enumerate(splits.SPLITS[1:], start=1):
        if not np.any(assigned == index):
            print(f"warning: the {name} split has no rows", file=sys.stderr)
    if times is None:
        return
    for index, later in enumerate(splits.SPLITS[1:], start=1):
        before, after = times[assigned < index], times[assigned == index]
        if len(before) and len(after) and before.max() == after.min():
            shared = int(np.count_nonzero(times == after.min()))
            print(
                f"warning: {shared:,} rows have the time at which {later} begins and lie on both sides of it",
                file=sys.stderr,
            )
