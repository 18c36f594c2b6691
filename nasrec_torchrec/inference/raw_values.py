"""What the transform of training and file scoring makes of the raw values of a feature, however few there are."""

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np
import pyarrow as pa

from nasrec_torchrec.datasets import transform, values
from nasrec_torchrec.datasets.features import FIRST_WORD, SparseFeature
from nasrec_torchrec.datasets.ids import read_ids
from nasrec_torchrec.datasets.quality import NO_ROW
from nasrec_torchrec.datasets.schema import Schema

# Says which row or column a value is from, by its place.
Where = Callable[[int], str]
# Crosses that are remembered of each feature.
_MOST = 2**18
_INT64 = range(-(2**63), 2**63)


class Numbers:
    """Dense features that are transformed in the same way."""

    def __init__(self, schema: Schema, places: list[int]) -> None:
        self._features = [schema.dense[place] for place in places]
        self.places, self.names = places, [feature.name for feature in self._features]
        self.standardized = self._features[0].transform == "standardize"

    def transform(self, raw: np.ndarray, where: Where) -> np.ndarray:
        """Returns the prepared numbers of raw ones ``(features, rows)``, in which NaN is missing."""
        refused: values.Rejects = {}
        read = transform.read_numbers(self._features[0], pa.array(raw.reshape(-1)), refused)
        _raise_first(refused, where)
        numbers = read.to_numpy(zero_copy_only=False).reshape(raw.shape)
        if self.standardized:
            # Mean and deviation are a feature's own.
            numbers = np.stack(
                [
                    transform.standardized(feature, own, refused, number * len(own))
                    for number, (feature, own) in enumerate(zip(self._features, numbers, strict=True))
                ]
            )
            _raise_first(refused, where)
        return transform.filled(numbers)


class Ids:
    """What the transform makes of the values of categorical features.

    Values of all features with the same rule are transformed together, because a call of the transform takes a while,
    however few the values are. Nothing is remembered: values that were seen before cost as much as others.

    Args:
        schema: schema of the package.
        dictionaries: words of each table with a dictionary.
    """

    def __init__(self, schema: Schema, dictionaries: Mapping[str, pa.Array]) -> None:
        self._features = {feature.name: feature for feature in schema.sparse if not (feature.cross or feature.of)}
        tables = {feature.table for feature in self._features.values() if feature.ids == "dictionary"}
        self._words = {table: index(dictionaries[table]) for table in tables}
        known: dict[tuple[str, bool], dict[Any, int]] = {}
        self._known: dict[str, dict[Any, int]] = {}
        for name, feature in self._features.items():
            table = feature.table if feature.ids == "dictionary" else ""
            if (table, feature.multi_hot) not in known:
                # A list's values are what stands between separators, so none of them can be the text of a missing list.
                marks = () if feature.multi_hot else schema.text.missing
                always: dict[Any, int] = dict.fromkeys((None, "", *marks), 0)
                known[table, feature.multi_hot] = {**self._words.get(table, {}), **always}
            self._known[name] = known[table, feature.multi_hot]

    def read(self, columns: Mapping[str, tuple[Sequence[Any], Where]]) -> dict[str, list[int]]:
        """Returns the ids of values by the name of their feature; an id that the table does not have is ``NO_ROW``.

        Args:
            columns: by the name of a feature, one value of each row or those of all lists, and what says which row the
                value at a place is from.

        Raises:
            ValueError: If a value cannot be read.
        """
        found: dict[str, Any] = {}
        groups: dict[tuple[Any, ...], list[_Part]] = {}
        for name, (given, where) in columns.items():
            feature, known = self._features[name], self._known[name]
            kinds = set(map(type, given))
            if not kinds <= _SIMPLE:
                given = _python_values(feature, given, where)
                kinds = set(map(type, given))
            if kinds <= _TEXT:
                ids = list(map(known.get, given))
            else:
                ids = [known.get(value) if type(value) in _TEXT else 0 if value != value else None for value in given]
            found[name] = ids
            if None in ids:
                for kind, places in _by_type(given, ids, kinds).items():
                    # What Arrow makes of other types depends on all of their values.
                    group: tuple[Any, ...] = feature.ids, feature.values, kind, "" if kind in _GROUPED else name
                    new = given if len(places) == len(given) else [given[place] for place in places]
                    part = _Part(feature, where, ids, new, places)
                    groups.setdefault(group, []).append(part)
        for (_, _, kind, _), parts in groups.items():
            self._transform(kind, parts)
        return found

    def _transform(self, kind: type, parts: list["_Part"]) -> None:
        """Completes the ids of values of one type, of features with the same rule."""
        rule, where = parts[0].feature, partial(_of_part, parts)
        flat = list(chain.from_iterable(part.values for part in parts))
        limits = [0 if rule.ids == "dictionary" else part.feature.id_limit for part in parts]
        each = np.repeat(np.array(limits, np.int64), [len(part.places) for part in parts])
        refused: values.Rejects = {}
        array = _array(kind, flat, where)
        try:
            found = read_ids(rule, array, refused, scoring=True, limits=each)
        except (ValueError, pa.ArrowException) as error:
            raise ValueError(f"{where(0)}: {error}") from None
        _raise_first(refused, where)
        read = iter(found.to_pylist())
        for part in parts:
            own = list(islice(read, len(part.places)))
            if rule.ids == "dictionary":
                # Without the marks of missing values, because a number is none. A text is its own, and no known word.
                words = {} if kind is str and rule.values == "text" else self._words[part.feature.table]
                own = [0 if word is None else words.get(word, FIRST_WORD - 1) for word in own]
            if len(own) == len(part.ids):
                part.ids[:] = own
            else:
                for place, number in zip(part.places, own, strict=True):
                    part.ids[place] = number


@dataclass
class _Part:
    """Values of one feature and type that are to be transformed.

    Args:
        feature: feature.
        where: says which row the value at a place is from.
        ids: ids of all values of the feature, to be completed.
        values: values without an id.
        places: their places among all values.
    """

    feature: SparseFeature
    where: Where
    ids: list[Any]
    values: Sequence[Any]
    places: Sequence[int]


class _Wide:
    """Stands for integers beyond 64 bits, which are read as text."""


def _python_values(feature: SparseFeature, given: Sequence[Any], where: Where) -> list[Any]:
    """Returns Python's own values, after checking that they are single ones."""
    plain = [python_value(value) for value in given]
    for place, value in enumerate(plain):
        if not isinstance(value, Hashable) or isinstance(value, tuple):
            hint = " in the list" if feature.multi_hot else "; only multi_hot features have lists"
            raise ValueError(
                f"{where(place)}: column '{feature.name}': expected single values, found a {type(value).__name__}{hint}"
            )
    return plain


def _by_type(given: Sequence[Any], ids: Sequence[int | None], kinds: set[type]) -> dict[type, Sequence[int]]:
    """Returns the places of values without an id, by their type."""
    every = ids.count(None) == len(ids)
    places = range(len(ids)) if every else [place for place, number in enumerate(ids) if number is None]
    if kinds <= _TEXT:
        return {str: places}
    found: dict[type, Any] = {}
    for place in places:
        kind = type(given[place])
        found.setdefault(_Wide if kind is int and given[place] not in _INT64 else kind, []).append(place)
    return found


def _of_part(parts: Sequence[_Part], place: int) -> str:
    """Says which row and column a value is from, where the values of one part come after those of the other."""
    for part in parts:
        if place < len(part.places):
            return f"{part.where(part.places[place])}: column '{part.feature.name}'"
        place -= len(part.places)
    raise AssertionError


def _array(kind: type, flat: list[Any], where: Where) -> pa.Array:
    """Returns values of one type as an array; raises a ValueError that says which one Arrow refuses."""
    if kind is _Wide:
        flat = list(map(str, flat))
    try:
        return values.plain(pa.array(flat, pa.string() if kind is str else None))
    except (ValueError, OverflowError, pa.ArrowException) as error:
        _raise_first({place: wrong for place, value in enumerate(flat) if (wrong := _why_not(value))}, where)
        raise ValueError(f"{where(0)}: {error}") from None


def mark(feature: SparseFeature, found: list[int], size: list[int], unknown: list[list[str]]) -> tuple[int, int]:
    """Notes the rows with unknown values of a feature.

    Returns:
        How many rows have no value, and how many values are unknown.
    """
    strange = NO_ROW if feature.ids == "id" else FIRST_WORD - 1 if feature.ids == "dictionary" else None
    missing = size.count(0) if feature.multi_hot else found.count(0)
    if strange is None or strange not in found:
        return missing, 0
    rows = [place for place, number in enumerate(found) if number == strange]
    if feature.multi_hot:
        rows = list(dict.fromkeys(np.searchsorted(np.cumsum(size), rows, "right").tolist()))
    for row in rows:
        unknown[row].append(feature.name)
    return missing, found.count(strange)


class Crossed:
    """The ids of a cross, by those that it combines."""

    def __init__(self, feature: SparseFeature, dictionaries: Mapping[str, pa.Array]) -> None:
        self._feature, self._dictionaries = feature, dictionaries
        self._words = index(dictionaries[feature.table]) if feature.ids == "dictionary" else None
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
_GROUPED = _SIMPLE | {_Wide}
_REAL = frozenset((int, float, type(None)))


def read_numbers(flat: list[Any], where: Where, marks: frozenset[str]) -> np.ndarray:
    """Numbers, NaN where they are missing; text and other kinds are read as those of files are."""
    if set(map(type, flat)) <= _REAL:
        with suppress(OverflowError):
            return np.array(flat, np.float64)
    found = np.full(len(flat), np.nan)
    others: dict[type, dict[int, Any]] = {}
    for place, given in enumerate(flat):
        value = python_value(given)
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
            raise ValueError(f"{where(list(placed)[number])}: {refused[number]}")
        found[list(placed)] = read.to_numpy(zero_copy_only=False)
    return found


def python_value(value: Any) -> Any:
    """Python's own value for one of NumPy or PyTorch."""
    convert: Callable[[], Any] | None = getattr(value, "tolist", None)
    return value if convert is None else convert()


def _why_not(value: Any) -> str:
    """Why Arrow refuses a value; nothing if it does not."""
    try:
        pa.array([value])
    except (ValueError, OverflowError, pa.ArrowException) as error:
        return str(error)
    return ""


def _raise_first(refused: Mapping[int, str], where: Where) -> None:
    for place in sorted(refused):
        raise ValueError(f"{where(place)}: {refused[place]}")


def index(words: pa.Array) -> dict[str, int]:
    """Returns the ids of a dictionary's words, which the transform looks up in the dictionary itself."""
    return {word: FIRST_WORD + place for place, word in enumerate(words.to_pylist())}


def reason(reject: str) -> str:
    """Why a value was rejected, without the column."""
    return re.sub(r"^column '[^']*': ", "", reject)
