"""Raw rows, as a caller has them, into what a model takes: by the transform that preparation and file scoring use.

A row is a mapping of raw columns to values of JSON or Python: ``{"user": "u42", "genres": ["a", "b"], "price": None}``.

- A column that is left out, ``None``, NaN, and a text that the training files had for a missing value are *missing*.
- A value that the training data did not have is *unknown*: an id that its table does not have counts as missing, and a
  word that its dictionary does not have is the unknown word.
- Columns that the model does not read, such as the label, are passed over and counted; a row that has none of the
  model's columns is refused.
- A value of another kind is refused; the message names row and column.
- Columns that have one value for all rows, such as those of the user whose candidates are ranked, may be given once
  instead of in every row; what the model gets is the same to the bit.

What one value becomes does not depend on other rows. So the values of all features with the same rule are transformed
together, as one column.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from nasrec_torchrec.datasets import buckets, moments, transform, values
from nasrec_torchrec.datasets.features import SparseFeature
from nasrec_torchrec.datasets.names import flat
from nasrec_torchrec.datasets.quality import Counts
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.datasets.words import read_dictionaries
from nasrec_torchrec.inference.predictor import Request
from nasrec_torchrec.inference.raw_values import Crossed, Ids, Numbers, Where, mark, python_value, read_numbers, reason


@dataclass(frozen=True)
class RawRows:
    """What was read of some rows.

    Args:
        request: tensors that the model takes.
        unknown: names of the features of each row that have an unknown value.
        extra: number of values that were ignored because the model does not read their columns.
    """

    request: Request
    unknown: list[list[str]]
    extra: int


class RowReader:
    """Reads raw rows by the schema of a package. Safe to use from several threads.

    Args:
        schema: schema of the package.
        dictionaries: its words, by the name of the table; see
            :func:`~nasrec_torchrec.datasets.words.read_dictionaries`.
    """

    def __init__(self, schema: Schema, dictionaries: Mapping[str, pa.Array]) -> None:
        self.schema = schema
        self._marks = frozenset(schema.text.missing)
        self._ids = Ids(schema, dictionaries)
        self._crosses = {feature.name: Crossed(feature, dictionaries) for feature in schema.crosses}
        self._columns = schema.input_columns
        self._known = frozenset(self._columns)
        # Raw columns by the names of features and weights, which may be those of other raw columns.
        self._sources = {dense.name: dense.column or dense.name for dense in schema.dense if not dense.age_of}
        for sparse in schema.sparse:
            if not (sparse.cross or sparse.of):
                names = (sparse.name, *filter(None, [sparse.weights_column]))
                self._sources |= dict(zip(names, sparse.raw_columns, strict=True))
        self._read_from = {sparse.name: sparse.raw_columns[0] for sparse in schema.sparse if not sparse.cross}
        # A schema may name a cross before the features that it combines.
        self._order = sorted(range(len(schema.sparse)), key=lambda place: bool(schema.sparse[place].cross))
        self._nested = any("." in name for name in self._columns)
        self._ages = [dense for dense in schema.dense if dense.age_of]
        # Features that are transformed in the same way are transformed together, as one column.
        groups: dict[str, list[int]] = {}
        self._places = {dense.name: place for place, dense in enumerate(schema.dense)}
        for place, dense in enumerate(schema.dense):
            groups.setdefault(dense.transform, []).append(place)
        self._groups = [Numbers(schema, places) for places in groups.values()]
        self._counting = threading.Lock()
        self._counts = {name: [0, 0, 0, 0, 0.0] for name in [*(d.name for d in schema.dense), *schema.feature_names]}

    @classmethod
    def of_package(cls, folder: Path, manifest: Mapping[str, Any]) -> "RowReader":
        """Returns the reader of a package's raw rows.

        Args:
            folder: folder of the package.
            manifest: manifest of the package.

        Raises:
            ValueError: If the package lacks the words of its dictionaries.
            ReplacedError: If the folder holds those of another package by now.
        """
        schema = Schema.from_json(json.dumps(manifest["schema"]))
        return cls(schema, read_dictionaries(folder, schema, manifest.get("sha256", {})))

    @property
    def columns(self) -> frozenset[str]:
        """The raw columns that the model reads."""
        return self._known

    @property
    def counts(self) -> dict[str, Counts]:
        """What was found of each feature so far, as file scoring counts it."""
        with self._counting:
            return {name: Counts(*found) for name, found in self._counts.items()}  # type: ignore[arg-type]

    def read(
        self,
        rows: Sequence[Mapping[str, Any]],
        shared: Mapping[str, Any] | None = None,
        max_ids: int | None = None,
    ) -> RawRows:
        """Makes a request of raw rows.

        Args:
            rows: raw values by column; see the module for what is allowed.
            shared: values by column that hold for every row and are read once; no row may have a value of its own.
            max_ids: largest number of ids in the request.

        Returns:
            The request, and what was found.

        Raises:
            ValueError: If a value cannot be read. The message names the row, the column and the value, and what is
                expected. Or if there are more ids than ``max_ids``.
        """
        shared = shared or {}
        if self._nested:
            rows, shared = [_flat(row) for row in rows], _flat(shared)
        extra, alike = self._check(rows, shared)
        count = len(rows)
        raw = self._raw(rows, shared, alike)
        seconds = {name: self._seconds(name, raw[name], name in shared) for name in self.schema.moment_columns}
        columns = {name: raw[column] for name, column in self._sources.items()}
        given_once = {name: shared[column] for name, column in self._sources.items() if column in shared}
        for age in self._ages:
            days = moments.days_between(seconds[age.age_of], seconds[age.at]).to_numpy(zero_copy_only=False)
            columns[age.name] = np.broadcast_to(days, count).tolist()
        dense, counts = self._dense(columns, count, given_once)
        # A cross is read row by row, whatever it combines.
        shared_names = {name for name, column in self._read_from.items() if column in shared}
        lengths = np.ones((len(self.schema.sparse), count), np.int64)
        sizes: dict[str, list[int]] = {}
        given: dict[str, tuple[Sequence[Any], Where]] = {}
        weights: list[np.ndarray] = []
        total = 0
        for place, feature in enumerate(self.schema.sparse):
            name, once = feature.name, feature.name in shared_names
            times, where = (count, _shared) if once else (1, _row)
            size = sizes[name] = [1] * (1 if once else count)
            if feature.multi_hot:
                bags = self._bags(name, columns[name], feature.separator, where)
                whole, bags = list(map(len, bags)), [bag[: feature.max_length] for bag in bags]
                size = sizes[name] = [len(bag) for bag in bags]
                lengths[place] = size
                given[name] = list(chain.from_iterable(bags)), _in_lists(size, where)
            elif not (feature.of or feature.cross):
                given[name] = columns[name], where
            total += sum(size) * times
            if max_ids is not None and total > max_ids:
                raise ValueError(f"rows: expected {max_ids} ids at most, found {total}")
            if feature.weights_column:
                weights.append(np.tile(self._weights(feature, columns[feature.weights_column], whole, where), times))
        found = self._ids.read(given)
        unknown: list[list[str]] = [[] for _ in rows]
        for place in self._order:
            feature = self.schema.sparse[place]
            name, once = feature.name, feature.name in shared_names
            if feature.ids == "buckets":
                found[name] = buckets.ids(dense[:, self._places[feature.cross[0]]], feature.edges).to_pylist()
            elif feature.of:
                found[name] = moments.ids(feature.ids, seconds[feature.of]).to_pylist()
            elif feature.cross:
                found[name] = self._crosses[name].read([found[part] for part in feature.cross])
            times = count if once else 1
            marked: list[list[str]] = [[]] if once else unknown
            missing, strange = mark(feature, found[name], sizes[name], marked)
            if once and marked[0]:
                for names in unknown:
                    names.append(name)
            present = len(found[name]) - (0 if feature.multi_hot else missing)
            counts.append((name, missing * times, present * times, strange * times, 0.0))
            if strange and feature.ids == "id":
                found[name] = [max(number, 0) for number in found[name]]
            if once:
                found[name] = found[name] * count
        with self._counting:
            for name, *more in counts:
                known = self._counts[name]
                known[0] += count
                for place, value in enumerate(more, 1):
                    known[place] += value
        ids = list(chain.from_iterable(found[name] for name in self.schema.feature_names))
        request = Request(
            torch.from_numpy(np.array(ids, np.int64)),
            torch.from_numpy(lengths),
            torch.from_numpy(dense) if self.schema.dense else None,
            torch.from_numpy(np.concatenate(weights)) if weights else None,
        )
        return RawRows(request, unknown, extra)

    def _raw(
        self, rows: Sequence[Mapping[str, Any]], shared: Mapping[str, Any], alike: bool
    ) -> dict[str, Sequence[Any]]:
        """Returns the values of each column; those of a shared one once."""
        if alike:
            given = dict(zip(rows[0], zip(*[row.values() for row in rows], strict=True), strict=True))
            nothing = (None,) * len(rows)
            found: dict[str, Sequence[Any]] = {name: given.get(name, nothing) for name in self._columns}
        else:
            found = {name: [row.get(name) for row in rows] for name in self._columns}
        return found | {name: [shared[name]] for name in self._columns if name in shared}

    def _check(self, rows: Sequence[Mapping[str, Any]], shared: Mapping[str, Any]) -> tuple[int, bool]:
        """Checks the columns of all rows.

        Returns:
            How many values the model does not read, and whether all rows have the same columns in the same order.
        """
        if not isinstance(shared, Mapping):
            raise ValueError(f"shared: expected columns and their values, found {type(shared).__name__}")
        taken = len(self._known & shared.keys())
        total = (len(shared) - taken) * len(rows)
        for feature in self.schema.sparse:
            if not feature.weighted:
                continue
            name, weights = feature.raw_columns
            if (name in shared) != (weights in shared):
                raise ValueError(f"shared: expected '{name}' and '{weights}' together, found one of them")
        checked: dict[tuple[Any, ...], int] = {}
        for number, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise ValueError(f"row {number}: expected columns and their values, found {type(row).__name__}")
            columns = tuple(row)
            if columns not in checked:
                checked[columns] = len(columns) - self._own(number, row, shared, taken)
            total += checked[columns]
        return total, len(checked) == 1

    def _own(self, number: int, row: Mapping[str, Any], shared: Mapping[str, Any], taken: int) -> int:
        """Returns how many of the model's columns a row has."""
        known = self._known
        own = len(known & row.keys())
        if not shared.keys().isdisjoint(row):
            twice = sorted(map(str, shared.keys() & row.keys()))
            raise ValueError(f"row {number}: columns {twice} are in shared too; expected each in one place")
        if not own and not taken:
            raise ValueError(
                f"row {number}: has none of the model's columns {sorted(known)[:20]}, "
                f"found {sorted(map(str, row))[:20]}"
            )
        return own

    def _bags(self, name: str, column: Sequence[Any], separator: str, where: Where) -> list[list[Any]]:
        bags: list[list[Any]] = []
        for number, given in enumerate(column):
            value = python_value(given)
            if value is None or (isinstance(value, str) and (not value or value in self._marks)):
                bags.append([])
            elif isinstance(value, str):
                bags.append(value.split(separator))
            elif isinstance(value, list | tuple):
                bags.append(list(value))
            else:
                raise ValueError(
                    f"{where(number)}: column '{name}': expected a list, or text that '{separator}' separates, "
                    f"found {values.show(value)}"
                )
        return bags

    def _dense(
        self, columns: Mapping[str, Sequence[Any]], count: int, shared: Mapping[str, Any]
    ) -> tuple[np.ndarray, list[tuple[str, int, int, int, float]]]:
        """Returns the dense features ``(rows, features)`` in float32, and what to count for each of them."""
        found = np.empty((count, len(self.schema.dense)), np.float32)
        counts: list[tuple[str, int, int, int, float]] = []
        for group in self._groups:
            own = [name for name in group.names if name not in shared]
            flat = list(chain.from_iterable(columns[name] for name in own))
            raw = read_numbers(flat, partial(_place, own, count, shared), self._marks).reshape(len(own), count)
            if len(own) < len(group.names):
                raw = self._tiled(group.names, own, raw, shared)
            read = group.transform(raw, partial(_place, group.names, count, shared))
            absent = np.count_nonzero(np.isnan(raw), axis=1).tolist()
            totals = read.sum(axis=1, dtype=np.float64).tolist() if group.standardized else [0.0] * len(absent)
            found[:, group.places] = read.T
            for name, missing, total in zip(group.names, absent, totals, strict=True):
                counts.append((name, missing, count - missing, 0, total))
        return found, counts

    def _seconds(self, name: str, column: Sequence[Any], shared: bool) -> pa.Array:
        """Returns moments in seconds since 1970, null where they are missing."""
        words = [_moment(value, self._marks) for value in map(python_value, column)]
        given = pa.array(words, pa.string())
        refused: values.Rejects = {}
        read = moments.moments(given, refused)
        for place in sorted(refused):
            raise ValueError(f"{'shared' if shared else _row(place)}: column '{name}': {refused[place]}")
        return read

    def _tiled(self, names: list[str], own: list[str], raw: np.ndarray, shared: Mapping[str, Any]) -> np.ndarray:
        """Returns the numbers of all features, of which some are shared and the others are rows of ``raw``."""
        found = np.empty((len(names), raw.shape[1]))
        of_rows = dict(zip(own, raw, strict=True))
        for place, name in enumerate(names):
            if name in shared:
                found[place] = read_numbers([shared[name]], partial(_of_shared, name), self._marks)
            else:
                found[place] = of_rows[name]
        return found

    def _weights(self, feature: SparseFeature, column: Sequence[Any], size: list[int], where: Where) -> np.ndarray:
        name = feature.weights_column
        assert name is not None
        bags = self._bags(name, column, feature.separator, where)
        for number, (bag, expected) in enumerate(zip(bags, size, strict=True)):
            if len(bag) != expected:
                raise ValueError(f"{where(number)}: column '{name}': expected one weight per value")
        bags = [bag[: feature.max_length] for bag in bags]
        size = list(map(len, bags))
        in_lists = _in_lists(size, where)

        def of_column(place: int) -> str:
            return f"{in_lists(place)}: column '{name}'"

        raw = read_numbers([weight for bag in bags for weight in bag], of_column, frozenset())
        # One weight a row, so that a rejected row is a place.
        rule = SparseFeature("value", 1, multi_hot=True, weighted=True)
        each = np.arange(len(raw) + 1, dtype=np.int32)
        table = pa.table(
            {
                "value": pa.ListArray.from_arrays(each, pa.nulls(len(raw), pa.int64())),
                "value_weights": pa.ListArray.from_arrays(each, pa.array(raw)),
            }
        )
        parsed, rejects = transform.parse(table, Schema(self.schema.label, (), (rule,)), scoring=True)
        for place in sorted(rejects):
            raise ValueError(f"{of_column(place)}: {reason(rejects[place])}")
        found = values.plain(parsed.column("value_weights")).flatten()
        return np.asarray(found.to_numpy(zero_copy_only=False), np.float32)


def _flat(row: Any) -> Any:
    """Returns a row in which members of objects have names such as ``user.id``, as raw columns have."""
    return flat(row) if isinstance(row, Mapping) else row


def _moment(value: Any, marks: frozenset[str]) -> str | None:
    """Returns the text of a moment; NaN is a missing one, and so is a text that marks one."""
    if value is None or value != value or (isinstance(value, str) and value in marks):
        return None
    return value.isoformat() if isinstance(value, date) else str(value)


def _place(names: Sequence[str], count: int, shared: Mapping[str, Any], place: int) -> str:
    """Says which row and column a value is from, where one column comes after the other."""
    name = names[place // count]
    return f"{'shared' if name in shared else _row(place % count)}: column '{name}'"


def _row(place: int) -> str:
    return f"row {place}"


def _shared(_: int) -> str:
    return "shared"


def _of_shared(name: str, _: int) -> str:
    return f"shared: column '{name}'"


def _in_lists(size: list[int], where: Where) -> Where:
    """Says which row a value of all lists together is from."""
    ends = np.cumsum(size)
    return lambda place: where(int(np.searchsorted(ends, place, "right")))
