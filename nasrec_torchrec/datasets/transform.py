"""Transforms raw columns into prepared columns, a whole column at a time, and sets aside rows that cannot be read.

Preparation runs in two steps because some rules need the whole training split: :func:`parse` does everything that
depends on a single row, and :func:`finish` what needs a dictionary or a mean. Scoring raw rows does both at once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nasrec_torchrec.datasets import buckets, history, moments, values
from nasrec_torchrec.datasets.features import FIRST_WORD, DenseFeature, SparseFeature
from nasrec_torchrec.datasets.ids import read_ids
from nasrec_torchrec.datasets.labels import LabelRule
from nasrec_torchrec.datasets.quality import NO_ROW, Quality
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.datasets.values import Rejects


@dataclass(frozen=True)
class Extra:
    """A raw column to read in addition to those of the schema, such as the one that determines the split.

    Args:
        column: name of the raw column.
        kind: kind of its values, none of which may be missing.
    """

    column: str
    kind: Literal["text", "time"]


def parse(
    table: pa.Table, schema: Schema, extra: Mapping[str, Extra] | None = None, scoring: bool = False
) -> tuple[pa.Table, Rejects]:
    """Reads the raw columns of a schema.

    Args:
        table: raw columns of any type, in which null is a missing value.
        schema: what the columns mean.
        extra: further columns to read, by the names that they get.
        scoring: whether to leave out the labels and the weight, whatever is in their columns, and to treat an id
            outside its table as unknown instead of rejecting its row.

    Returns:
        tuple: The rows that could be read, and the reason for each rejected row of ``table``. Columns with a dictionary
        are still text, missing numbers are NaN, and numbers to standardize are raw.

    Raises:
        ValueError: If the type of a column can never fit. The message names the column.
    """
    rejects: Rejects = {}
    columns: dict[str, pa.Array] = {}
    if not scoring:
        columns[schema.label] = _label(_single(table, schema.label), schema.label, schema, rejects)
        for task in schema.tasks:
            raw = _single(table, task.raw_column)
            columns[task.name] = _label(raw, task.raw_column, task, rejects, optional=True)
        if schema.weight is not None:
            columns[schema.weight] = _elements(_single(table, schema.weight), _row_weights, schema.weight, rejects)
    seconds = {name: _elements(_single(table, name), moments.moments, name, rejects) for name in schema.moment_columns}
    for dense in schema.dense:
        if dense.age_of:
            raw = moments.days_between(seconds[dense.age_of], seconds[dense.at])
        else:
            raw = _single(table, dense.column or dense.name)
        columns[dense.name] = _elements(raw, partial(read_numbers, dense), dense.column or dense.name, rejects)
    for sparse in schema.sparse:
        if sparse.cross:
            continue
        if sparse.of:
            columns[sparse.name] = moments.ids(sparse.ids, seconds[sparse.of])
            continue
        name, *more = sparse.raw_columns
        raw = _lists(table, name, sparse.separator) if sparse.multi_hot else _single(table, name)
        lengths = values.lengths(raw) if sparse.weights_column else None
        raw = _beginning(raw, sparse.max_length)
        columns[sparse.name] = _elements(raw, partial(read_ids, sparse, scoring=scoring), name, rejects)
        if sparse.weights_column:
            (of_weights,) = more
            weights = _lists(table, of_weights, sparse.separator)
            found = _elements(_beginning(weights, sparse.max_length), _weights, of_weights, rejects)
            columns[sparse.weights_column] = found
            for row in np.flatnonzero(lengths != values.lengths(weights)):
                rejects.setdefault(int(row), f"column '{of_weights}': expected one weight per value")
    for name, wanted in (extra or {}).items():
        read = values.times if wanted.kind == "time" else values.text
        columns[name] = _elements(_single(table, wanted.column), read, wanted.column, rejects, required=True)
    return _without(pa.table(columns), rejects), rejects


def finish(
    table: pa.Table, schema: Schema, dictionaries: Mapping[str, pa.Array], quality: Quality | None = None
) -> tuple[pa.Table, Rejects]:
    """Applies what was measured on the training split to parsed rows.

    Args:
        table: rows that :func:`parse` returned.
        schema: schema with mean, deviation and num_embeddings.
        dictionaries: words of each table with a dictionary, in the order of their ids.
        quality: counts to which missing and unknown values are added, if given.

    Returns:
        tuple: The prepared rows, and the reason for each rejected row of ``table``.
    """
    rejects: Rejects = {}
    for dense in schema.dense:
        if dense.transform == "standardize":
            refused: Rejects = {}
            scaled = standardized(dense, table.column(dense.name).to_numpy(), refused)
            for row, reason in refused.items():
                rejects.setdefault(row, f"column '{dense.name}': {reason}")
            table = _replace(table, dense.name, pa.array(scaled))
    for sparse in schema.sparse:
        if sparse.ids == "dictionary" and not sparse.cross:
            words = dictionaries[sparse.table]
            column = values.plain(table.column(sparse.name))
            ids = _elements(column, partial(_look_up, sparse, words), sparse.name, {})
            table = _replace(table, sparse.name, ids)
    table = _without(table, rejects)
    counted = table
    for dense in schema.dense:
        table = _replace(table, dense.name, pa.array(filled(table.column(dense.name).to_numpy())))
    for sparse in schema.sparse:
        if sparse.ids == "id":
            ids = _elements(values.plain(table.column(sparse.name)), _known, sparse.name, {})
            table = _replace(table, sparse.name, ids)
    table = add_crosses(table, schema.crosses, dictionaries)
    if quality is not None:
        for cross in schema.crosses:
            counted = counted.append_column(cross.name, table.column(cross.name))
        quality.add(counted)
    return table, rejects


def read_numbers(feature: DenseFeature, flat: pa.Array, refused: Rejects) -> pa.Array:
    """Reads the numbers of a dense feature as float32, or as float64 if they are still to be standardized.

    Args:
        feature: feature.
        flat: plain values.
        refused: receives the position and reason of each value that cannot be read.

    Returns:
        pa.Array: The numbers, NaN where one is missing.

    Raises:
        ValueError: If values of this type are no numbers.
    """
    numbers = values.numbers(flat, refused)
    if feature.transform == "log1p":
        found = pc.fill_null(numbers, float("nan")).to_numpy(zero_copy_only=False)
        return pa.array(np.log1p(np.maximum(found, 0.0)).astype(np.float32))
    narrow = _float32(flat, numbers, refused)
    return pc.fill_null(numbers if feature.transform == "standardize" else narrow, float("nan"))


def standardized(feature: DenseFeature, numbers: np.ndarray, refused: Rejects, first: int = 0) -> np.ndarray:
    """Returns numbers less the mean, divided by the deviation.

    Args:
        feature: feature with a mean and a deviation.
        numbers: raw numbers, NaN where one is missing.
        refused: receives the position and reason of each number that float32 cannot hold then.
        first: position of the first one.
    """
    assert feature.mean is not None and feature.deviation is not None
    with np.errstate(over="ignore"):
        scaled = ((numbers - feature.mean) / feature.deviation).astype(np.float32)
    for place in np.flatnonzero(np.isinf(scaled)).tolist():
        refused[first + place] = f"{numbers[place]:g} is too far from the mean of the training rows for float32"
    return scaled


def filled(numbers: np.ndarray) -> np.ndarray:
    """Returns the prepared numbers: 0 where one is missing."""
    return np.where(np.isnan(numbers), 0.0, numbers).astype(np.float32)


def add_crosses(table: pa.Table, crosses: Sequence[SparseFeature], dictionaries: Mapping[str, pa.Array]) -> pa.Table:
    """Appends the columns of crosses and buckets to rows whose other columns are prepared.

    Args:
        table: rows with the prepared columns from which the crosses are computed.
        crosses: crosses to append.
        dictionaries: words of each table with a dictionary, for histories with their counts.
    """
    for feature in crosses:
        if feature.ids == "buckets":
            numbers = table.column(feature.cross[0]).to_numpy()
            table = table.append_column(feature.name, buckets.ids(numbers, feature.edges))
            continue
        combined = combine(table, feature)
        if feature.ids == "history":
            words = dictionaries[feature.table]
            assert isinstance(words, pa.StructArray)
            ids = history.look_up(combined, words)
        elif feature.ids == "dictionary":
            ids = _look_up(feature, dictionaries[feature.table], combined, {})
        else:
            ids = read_ids(feature, combined, {})
        table = table.append_column(feature.name, ids)
    return table


def combine(table: pa.Table, cross: SparseFeature) -> pa.Array:
    """Returns the value of a cross in every row as text: the prepared ids of its features, separated by commas."""
    texts = [values.plain(table.column(name)).cast(pa.string()) for name in cross.cross]
    return pc.binary_join_element_wise(*texts, ",")


def _without(table: pa.Table, rejects: Rejects) -> pa.Table:
    if not rejects:
        return table
    keep = np.ones(table.num_rows, bool)
    keep[list(rejects)] = False
    return table.filter(pa.array(keep))


def _replace(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, column)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:  # also what Arrow raises
        raise ValueError(f"column '{name}': {error}") from None
    except pa.ArrowException as error:
        raise ValueError(f"column '{name}': its values cannot be read: {error}") from None


def _single(table: pa.Table, name: str) -> pa.Array:
    with _naming(name):
        column = values.plain(table.column(name))
        if values.is_list(column.type):
            raise ValueError(f"expected one value a row, found {column.type}; only multi_hot features have lists")
    return column


def _lists(table: pa.Table, name: str, separator: str) -> pa.Array:
    with _naming(name):
        column = values.plain(table.column(name))
        if values.is_list(column.type):
            return column
        if not values.is_text(column.type):
            raise ValueError(f"expected lists, or text that '{separator}' separates, found {column.type}")
        # A missing list is an empty one, while splitting '' would give one empty value.
        return pc.split_pattern(values.without_empty(column), separator)


def _beginning(lists: pa.Array, most: int | None) -> pa.Array:
    """Returns the first values of each list."""
    return lists if most is None else values.plain(pc.list_slice(lists, 0, most, return_fixed_size_list=False))


def _elements(
    column: pa.Array, read: Callable[[pa.Array, Rejects], pa.Array], name: str, rejects: Rejects, required: bool = False
) -> pa.Array:
    """Applies ``read`` to the values of a column or of its lists, and rejects the rows of those that it refuses."""
    refused: Rejects = {}
    with _naming(name):
        if not values.is_list(column.type):
            result = read(column, refused)
            rows = list(refused)
            if required and result.null_count:
                missing = np.flatnonzero(result.is_null().to_numpy(zero_copy_only=False))
                refused = dict.fromkeys(map(int, missing), "it is missing") | refused
                rows = list(refused)
        else:
            ends = np.cumsum(values.lengths(column))
            # flatten() also leaves out what lies under a null list.
            result = read(values.plain(column.flatten()), refused)
            offsets = np.concatenate([[0], ends])
            if offsets[-1] >= 2**31:
                raise ValueError("more than 2**31 values in one piece of the data")
            result = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), result)
            rows = [int(row) for row in np.searchsorted(ends, list(refused), side="right")]
    for row, reason in zip(rows, refused.values(), strict=True):
        rejects.setdefault(int(row), f"column '{name}': {reason}")
    return result


def _label(column: pa.Array, name: str, rule: LabelRule, rejects: Rejects, optional: bool = False) -> pa.Array:
    """Reads 0 and 1 by a rule, and rejects rows with another value; a missing one is null if it is optional."""
    refused: Rejects = {}
    with _naming(name):
        if rule.label_values:
            known = dict(rule.label_values)
            words = values.text(column, {})
            clicks = values.per_distinct(words, known.get, pa.int8(), {}, "")
            fits, expected = pc.is_valid(clicks), f"one of {list(known)}"
        elif rule.label_above is not None:
            numbers = values.numbers(column, {})
            clicks = pc.greater(numbers, float(rule.label_above))
            fits, expected = pc.is_valid(numbers), "a finite number"
        else:
            numbers = values.numbers(_truth(column), {})
            clicks = pc.equal(numbers, 1.0)
            fits, expected = pc.or_(clicks, pc.equal(numbers, 0.0)), "0 or 1"
        if optional:
            present = values.without_empty(column) if values.is_text(column.type) else column
            missing = pc.is_null(present, nan_is_null=True)
            fits, expected = pc.or_kleene(fits, missing), f"{expected}, or nothing where it is not known"
    values.refuse(column, ~pc.fill_null(fits, False).to_numpy(zero_copy_only=False), refused, expected)
    for row, reason in refused.items():
        rejects.setdefault(row, f"label '{name}': {reason}")
    found = pc.fill_null(clicks.cast(pa.int8()), 0)
    return pc.if_else(missing, pa.scalar(None, pa.int8()), found) if optional else found


def _truth(column: pa.Array) -> pa.Array:
    """``true`` and ``false`` as they stand in text, in any case, as 1 and 0."""
    if not values.is_text(column.type):
        return column
    lower = pc.utf8_lower(values.text(column, {}))
    return pc.if_else(pc.equal(lower, "true"), "1", pc.if_else(pc.equal(lower, "false"), "0", lower))


def _weights(flat: pa.Array, refused: Rejects) -> pa.Array:
    numbers = values.numbers(flat, refused)
    if numbers.null_count:
        missing = numbers.is_null().to_numpy(zero_copy_only=False)
        values.refuse(flat, missing, refused, "a finite number")
    return pc.fill_null(_float32(flat, numbers, refused), 0.0)


def _row_weights(flat: pa.Array, refused: Rejects) -> pa.Array:
    numbers = values.numbers(flat, refused)
    fits = pc.fill_null(pc.greater_equal(numbers, 0.0), False).to_numpy(zero_copy_only=False)
    values.refuse(flat, ~fits, refused, "a weight, a finite number of 0 or more")
    return pc.fill_null(_float32(flat, numbers, refused), 0.0)


def _float32(flat: pa.Array, numbers: pa.Array, refused: Rejects) -> pa.Array:
    narrow = numbers.cast(pa.float32(), safe=False)
    lost = pc.fill_null(pc.is_inf(narrow), False).to_numpy(zero_copy_only=False)
    if lost.any():
        values.refuse(flat, lost, refused, "a number that float32 can hold")
    return narrow


def _look_up(feature: SparseFeature, words: pa.Array, flat: pa.Array, _: Rejects) -> pa.Array:
    found = pc.index_in(flat, value_set=words)
    ids = pc.if_else(flat.is_null(), 0, pc.add(pc.fill_null(found, 1 - FIRST_WORD), FIRST_WORD))
    assert feature.num_embeddings is not None
    return ids.cast(pa.int32() if feature.num_embeddings < 2**31 else pa.int64())


def _known(flat: pa.Array, _: Rejects) -> pa.Array:
    """Replaces ids that have no row in their table by 0, the missing id."""
    return pc.if_else(pc.equal(flat, NO_ROW), pa.scalar(0, flat.type), flat)
