"""Raw rows, as a caller has them, into what a model takes: by the transform that preparation and file scoring use.

A row is a mapping of raw columns to values of JSON or Python: ``{"user": "u42", "genres": ["a", "b"], "price": None}``.

- A column that is left out, ``None``, NaN, and a text that the training files had for a missing value are *missing*.
- A value that the training data did not have is *unknown*: an id that its table does not have counts as missing, and a
  word that its dictionary does not have is the unknown word.
- Columns that the model does not read, such as the label, are passed over and counted; a row that has none of the
  model's columns is refused.
- A value of another kind is refused; the message names row and column.

What one value becomes does not depend on other rows. So the transform sees each distinct categorical value once, and
what it made of it is remembered; numbers are transformed a whole column at a time.
"""

import json
import re
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from nasrec_torchrec.datasets import buckets, transform, values
from nasrec_torchrec.datasets.features import FIRST_WORD, SparseFeature
from nasrec_torchrec.datasets.quality import NO_ROW, Counts
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.inference.predictor import Request
from nasrec_torchrec.inference.scoring import read_dictionaries

# Entries that are remembered of each feature, and characters of a text that is remembered.
_MOST, _LONGEST = 2**18, 256
_INT64 = range(-(2**63), 2**63)


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
            :func:`~nasrec_torchrec.inference.scoring.read_dictionaries`.
    """

    def __init__(self, schema: Schema, dictionaries: Mapping[str, pa.Array]) -> None:
        self.schema = schema
        self._marks = frozenset(schema.text.missing)
        self._features = {feature.name: _Ids(schema, feature, dictionaries) for feature in schema.sparse}
        self._crosses = {feature.name: _Crossed(feature, dictionaries) for feature in schema.crosses}
        self._columns = [name for name in schema.raw_columns if name != schema.label]
        self._known = frozenset(self._columns)
        # Features that are transformed in the same way are transformed together, as one column.
        groups: dict[str, list[int]] = {}
        self._places = {dense.name: place for place, dense in enumerate(schema.dense)}
        for place, dense in enumerate(schema.dense):
            groups.setdefault(dense.transform, []).append(place)
        self._groups = [_Numbers(schema, places) for places in groups.values()]
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
        """
        schema = Schema.from_json(json.dumps(manifest["schema"]))
        return cls(schema, read_dictionaries(folder, schema))

    @property
    def columns(self) -> frozenset[str]:
        """The raw columns that the model reads."""
        return self._known

    @property
    def counts(self) -> dict[str, Counts]:
        """What was found of each feature so far, as file scoring counts it."""
        with self._counting:
            return {name: Counts(*found) for name, found in self._counts.items()}  # type: ignore[arg-type]

    def read(self, rows: Sequence[Mapping[str, Any]]) -> RawRows:
        """Makes a request of raw rows.

        Args:
            rows: raw values by column; see the module for what is allowed.

        Returns:
            The request, and what was found.

        Raises:
            ValueError: If a value cannot be read. The message names the row, the column and the value, and what is
                expected.
        """
        taken = self._check(rows)
        count = len(rows)
        columns = {name: [row.get(name) for row in rows] for name in self._columns}
        dense, counts = self._dense(columns, count)
        unknown: list[list[str]] = [[] for _ in rows]
        single: dict[str, list[int]] = {}
        ids: list[list[int]] = []
        lengths: list[list[int]] = []
        weights: list[np.ndarray] = []
        ones = [1] * count
        for feature in self.schema.sparse:
            name, size = feature.name, ones
            if feature.ids == "buckets":
                found = buckets.ids(dense[:, self._places[feature.cross[0]]], feature.edges).to_pylist()
            elif feature.cross:
                found = self._crosses[name].read([single[part] for part in feature.cross])
            elif feature.multi_hot:
                bags = self._bags(name, columns[name], feature.separator)
                size = [len(bag) for bag in bags]
                places = [row for row, bag in enumerate(bags) for _ in bag]
                found = self._features[name].read([value for bag in bags for value in bag], places)
                if feature.weights_column:
                    weights.append(self._weights(feature, columns[feature.weights_column], size))
            else:
                found = self._features[name].read(columns[name], None)
            missing, strange = self._features[name].mark(found, size, unknown)
            counts.append((name, missing, len(found) - (0 if feature.multi_hot else missing), strange, 0.0))
            if strange and feature.ids == "id":
                found = [max(value, 0) for value in found]
            if not feature.multi_hot:
                single[name] = found
            ids.append(found)
            lengths.append(size)
        with self._counting:
            for name, *more in counts:
                total = self._counts[name]
                total[0] += count
                for place, value in enumerate(more, 1):
                    total[place] += value
        request = Request(
            torch.from_numpy(np.fromiter(chain.from_iterable(ids), np.int64, sum(map(len, ids)))),
            torch.from_numpy(np.array(lengths, np.int64).reshape(len(ids), count)),
            torch.from_numpy(dense) if self.schema.dense else None,
            torch.from_numpy(np.concatenate(weights)) if weights else None,
        )
        return RawRows(request, unknown, sum(map(len, rows)) - taken)

    def _check(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Returns how many values the model reads, when every row has one."""
        known, total = self._known, 0
        for number, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise ValueError(f"row {number}: expected columns and their values, found {type(row).__name__}")
            taken = len(known & row.keys())
            if not taken:
                raise ValueError(
                    f"row {number}: has none of the model's columns {sorted(known)[:20]}, "
                    f"found {sorted(map(str, row))[:20]}"
                )
            total += taken
        return total

    def _bags(self, name: str, column: list[Any], separator: str) -> list[list[Any]]:
        bags: list[list[Any]] = []
        for number, given in enumerate(column):
            value = _python(given)
            if value is None or (isinstance(value, str) and (not value or value in self._marks)):
                bags.append([])
            elif isinstance(value, str):
                bags.append(value.split(separator))
            elif isinstance(value, list | tuple):
                bags.append(list(value))
            else:
                raise ValueError(
                    f"row {number}: column '{name}': expected a list, or text that '{separator}' separates, "
                    f"found {values.show(value)}"
                )
        return bags

    def _dense(
        self, columns: Mapping[str, list[Any]], count: int
    ) -> tuple[np.ndarray, list[tuple[str, int, int, int, float]]]:
        """Returns the dense features ``(rows, features)`` in float32, and what to count for each of them."""
        found = np.empty((count, len(self.schema.dense)), np.float32)
        counts: list[tuple[str, int, int, int, float]] = []
        for group in self._groups:
            flat = list(chain.from_iterable(columns[name] for name in group.names))
            raw = _float64(flat, partial(_place, group.names, count), self._marks)
            read = group.transform(raw, count)
            absent = np.count_nonzero(np.isnan(raw.reshape(-1, count)), axis=1)
            for name, place, column, missing in zip(group.names, group.places, read, absent.tolist(), strict=True):
                found[:, place] = column
                total = float(column.sum(dtype=np.float64)) if group.standardized else 0.0
                counts.append((name, missing, count - missing, 0, total))
        return found, counts

    def _weights(self, feature: SparseFeature, column: list[Any], size: list[int]) -> np.ndarray:
        name = feature.weights_column
        assert name is not None
        bags = self._bags(name, column, feature.separator)
        for number, (bag, expected) in enumerate(zip(bags, size, strict=True)):
            if len(bag) != expected:
                raise ValueError(f"row {number}: column '{name}': expected one weight per value")
        rows = [row for row, bag in enumerate(bags) for _ in bag]
        raw = _float64([weight for bag in bags for weight in bag], lambda place: (rows[place], name), frozenset())
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
            raise ValueError(f"row {rows[place]}: column '{name}': {_reason(rejects[place])}")
        found = values.plain(parsed.column("value_weights")).flatten()
        return np.asarray(found.to_numpy(zero_copy_only=False), np.float32)


class _Numbers:
    """Dense features that are transformed in the same way."""

    def __init__(self, schema: Schema, places: list[int]) -> None:
        features = [schema.dense[place] for place in places]
        self.places, self.names = places, [feature.name for feature in features]
        self.standardized = features[0].transform == "standardize"
        # A schema has a sparse feature: one without a value in any row.
        nothing = SparseFeature("nothing", 1)
        self._parsing = Schema("label", (replace(features[0], name="number"),), (nothing,))
        # Mean and deviation are a feature's own.
        finished = features if self.standardized else features[:1]
        numbered = tuple(replace(feature, name=str(number)) for number, feature in enumerate(finished))
        self._finishing = Schema("label", numbered, (nothing,))

    def transform(self, raw: np.ndarray, count: int) -> np.ndarray:
        """Numbers of one feature after the other, as ``(features, rows)`` in float32."""
        table = pa.table({"number": raw, "nothing": pa.nulls(len(raw), pa.int64())})
        parsed, rejects = transform.parse(table, self._parsing, scoring=True)
        for place in sorted(rejects):
            raise ValueError(f"row {place % count}: column '{self.names[place // count]}': {_reason(rejects[place])}")
        number = values.plain(parsed.column("number"))
        size = count if self.standardized else len(raw)
        columns = {feature.name: number.slice(i * size, size) for i, feature in enumerate(self._finishing.dense)}
        table = pa.table({**columns, "nothing": pa.array(np.zeros(size, np.int32))})
        prepared, rejects = transform.finish(table, self._finishing, {})
        for row in sorted(rejects):
            name = self.names[int(rejects[row].split("'")[1])]
            raise ValueError(f"row {row}: column '{name}': {_reason(rejects[row])}")
        found = [prepared.column(name).to_numpy() for name in columns]
        return np.concatenate(found).reshape(len(self.names), -1)


class _Ids:
    """What the transform makes of the values of one feature."""

    def __init__(self, schema: Schema, feature: SparseFeature, dictionaries: Mapping[str, pa.Array]) -> None:
        self._feature = feature
        ids: Any = "id" if feature.cross else feature.ids
        rule = replace(feature, multi_hot=False, weighted=False, cross=(), edges=(), ids=ids)
        self._schema = Schema(schema.label, (), (rule,))
        self._words = _index(dictionaries[feature.table]) if feature.ids == "dictionary" and not feature.cross else None
        # A list's values are what stands between separators, so none of them can be the text of a missing list.
        self._always: dict[Any, int] = {None: 0}
        if not feature.multi_hot:
            self._always |= dict.fromkeys(schema.text.missing, 0)
        self._known: dict[Any, int] = dict(self._always)

    def read(self, flat: list[Any], rows: list[int] | None) -> list[int]:
        """Returns the ids of values; an id that the table does not have is -1, see ``NO_ROW``.

        Args:
            flat: one value of each row, or those of all lists.
            rows: number of the row of each list value.
        """
        known = self._known
        kinds = set(map(type, flat))
        if not kinds <= _SIMPLE:
            flat = self._python(flat, rows)
        # 1, 1.0 and True are the same key, but not the same value.
        keys = flat if kinds <= _TEXT else [value if type(value) in _TEXT else (type(value), value) for value in flat]
        try:
            return list(map(known.__getitem__, keys))
        except KeyError:
            pass
        found: list[int | None] = [known.get(key) for key in keys]
        missed: dict[type, dict[Any, list[int]]] = {}
        for place, (value, read) in enumerate(zip(flat, found, strict=True)):
            if read is None:
                if value != value:  # NaN
                    found[place] = 0
                    continue
                if type(value) is int and value not in _INT64:
                    value = str(value)
                missed.setdefault(type(value), {}).setdefault(value, []).append(place)
        if len(known) > _MOST:
            self._known = known = dict(self._always)
        for placed in missed.values():
            for (value, places), read in zip(placed.items(), self._read(placed, rows), strict=True):
                for place in places:
                    found[place] = read
                if not isinstance(value, str | bytes) or len(value) <= _LONGEST:
                    known[keys[places[0]]] = read
        assert None not in found
        return found  # type: ignore[return-value]

    def _python(self, flat: list[Any], rows: list[int] | None) -> list[Any]:
        plain = [_python(value) for value in flat]
        for place, value in enumerate(plain):
            if not isinstance(value, Hashable) or isinstance(value, tuple):
                row = place if rows is None else rows[place]
                hint = "; only multi_hot features have lists" if rows is None else " in the list"
                raise ValueError(
                    f"row {row}: column '{self._feature.name}': expected single values, found a "
                    f"{type(value).__name__}{hint}"
                )
        return plain

    def _read(self, placed: Mapping[Any, list[int]], rows: list[int] | None) -> list[int]:
        name, given = self._feature.name, list(placed)
        try:
            parsed, rejects = transform.parse(pa.table({name: pa.array(given)}), self._schema, scoring=True)
        except (ValueError, OverflowError, pa.ArrowException) as error:
            rejects = {0: str(error)}
        if rejects:
            first = min(rejects, key=lambda number: placed[given[number]][0])
            place = placed[given[first]][0]
            raise ValueError(
                f"row {place if rows is None else rows[place]}: column '{name}': {_reason(rejects[first])}"
            )
        read = values.plain(parsed.column(name)).to_pylist()
        if self._words is None:
            return read
        words = self._words
        return [0 if word is None else words.get(word, FIRST_WORD - 1) for word in read]

    def mark(self, found: list[int], size: list[int], unknown: list[list[str]]) -> tuple[int, int]:
        """Notes the rows with unknown values.

        Returns:
            How many rows have no value, and how many values are unknown.
        """
        lists, ids = self._feature.multi_hot, self._feature.ids
        strange = NO_ROW if ids == "id" else FIRST_WORD - 1 if ids == "dictionary" else None
        missing = size.count(0) if lists else found.count(0)
        if strange is None or strange not in found:
            return missing, 0
        ends = np.cumsum(size)
        for row in dict.fromkeys(np.searchsorted(ends, np.flatnonzero(np.array(found) == strange), "right").tolist()):
            unknown[row].append(self._feature.name)
        return missing, found.count(strange)


class _Crossed:
    """The ids of a cross, by those that it combines."""

    def __init__(self, feature: SparseFeature, dictionaries: Mapping[str, pa.Array]) -> None:
        self._feature, self._dictionaries = feature, dictionaries
        self._words = _index(dictionaries[feature.table]) if feature.ids == "dictionary" else None
        self._known: dict[tuple[int, ...], int] = {}

    def read(self, parts: list[list[int]]) -> list[int]:
        known, rows = self._known, list(zip(*parts, strict=True))
        missed = list(dict.fromkeys(row for row in rows if row not in known))
        if missed and self._words is not None:
            # As the transform combines them.
            known |= {row: self._words.get(",".join(map(str, row)), FIRST_WORD - 1) for row in missed}
        elif missed:
            names = self._feature.cross
            table = pa.table({name: pa.array([row[i] for row in missed]) for i, name in enumerate(names)})
            crossed = transform.add_crosses(table, [self._feature], self._dictionaries)
            known |= dict(zip(missed, values.plain(crossed.column(self._feature.name)).to_pylist(), strict=True))
        found = [known[row] for row in rows]
        if len(known) > _MOST:
            self._known = {}
        return found


_SIMPLE = frozenset((str, int, float, bool, bytes, type(None)))
_TEXT = frozenset((str, type(None)))
_REAL = frozenset((int, float, type(None)))


def _float64(flat: list[Any], where: Callable[[int], tuple[int, str]], marks: frozenset[str]) -> np.ndarray:
    """Numbers, NaN where they are missing; text and other kinds are read as those of files are."""
    if set(map(type, flat)) <= _REAL:
        with suppress(OverflowError):
            return np.array(flat, np.float64)
    found = np.full(len(flat), np.nan)
    others: dict[type, dict[int, Any]] = {}
    for place, given in enumerate(flat):
        value = _python(given)
        if value is None or (isinstance(value, str) and value in marks):
            continue
        if type(value) is int or type(value) is float:
            try:
                found[place] = value
                continue
            except OverflowError:
                value = str(value)
        others.setdefault(type(value), {})[place] = value
    for kind, placed in others.items():
        refused: values.Rejects = {}
        try:
            read = values.numbers(values.plain(pa.array(list(placed.values()))), refused)
        except (ValueError, OverflowError, pa.ArrowException):
            refused = {0: f"expected a finite number, found a {kind.__name__}"}
        for number in sorted(refused):
            row, name = where(list(placed)[number])
            raise ValueError(f"row {row}: column '{name}': {refused[number]}")
        found[list(placed)] = read.to_numpy(zero_copy_only=False)
    return found


def _place(names: Sequence[str], count: int, place: int) -> tuple[int, str]:
    """Returns the row and the column of a value, where one column comes after the other."""
    return place % count, names[place // count]


def _python(value: Any) -> Any:
    """Python's own value for one of NumPy or PyTorch."""
    convert: Callable[[], Any] | None = getattr(value, "tolist", None)
    return value if convert is None else convert()


def _index(words: pa.Array) -> dict[str, int]:
    """Returns the ids of a dictionary's words, which the transform looks up in the dictionary itself."""
    return {word: FIRST_WORD + place for place, word in enumerate(words.to_pylist())}


def _reason(reject: str) -> str:
    """Why a value was rejected, without the column."""
    return re.sub(r"^column '[^']*': ", "", reject)
