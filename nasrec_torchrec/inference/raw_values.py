"""What the transform of training and file scoring makes of the raw values of a feature, however few there are."""

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
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
# Entries that are remembered of each feature, and characters of a text that is remembered.
_MOST, _LONGEST = 2**18, 256
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

    What a value becomes depends on its feature and its type alone, so it is remembered. New values of all features with
    the same rule are transformed together, because a call of the transform takes a while, however few the values are.

    Args:
        schema: schema of the package.
        dictionaries: words of each table with a dictionary.
    """

    def __init__(self, schema: Schema, dictionaries: Mapping[str, pa.Array]) -> None:
        own = [feature for feature in schema.sparse if not (feature.cross or feature.of)]
        tables = {feature.table for feature in own if feature.ids == "dictionary"}
        words = {table: index(dictionaries[table]) for table in tables}
        self._features = {
            feature.name: _Feature(feature, schema.text.missing, words.get(feature.table, {})) for feature in own
        }

    def read(self, columns: Mapping[str, tuple[Sequence[Any], Where]]) -> dict[str, list[int]]:
        """Returns the ids of values by the name of their feature; an id that the table does not have is ``NO_ROW``.

        Args:
            columns: by the name of a feature, one value of each row or those of all lists, and what says which row the
                value at a place is from.

        Raises:
            ValueError: If a value cannot be read.
        """
        found: dict[str, Any] = {}
        news: dict[Hashable, list[_New]] = {}
        for name, (given, where) in columns.items():
            feature = self._features[name]
            kinds = set(map(type, given))
            if not kinds <= _SIMPLE:
                given = feature.python_values(given, where)
                kinds = set(map(type, given))
            kinds.discard(type(None))
            found[name] = feature.remembered(given, kinds)
            if None in found[name]:
                for group, new in feature.news(given, kinds, found[name], where):
                    news.setdefault(group, []).append(new)
        for parts in news.values():
            _read(parts)
        return found


class _Feature:
    """The values of one feature that were read before."""

    def __init__(self, feature: SparseFeature, marks: Sequence[str], words: dict[str, int]) -> None:
        self.feature, self._words = feature, words
        # A list's values are what stands between separators, so none of them can be the text of a missing list.
        self._marks = () if feature.multi_hot else marks
        self._known, self._most = self._unseen(), _MOST + len(words)

    def _unseen(self) -> dict[type, dict[Any, int]]:
        # 1, 1.0 and True are the same key, but not the same value.
        known: dict[type, dict[Any, int]] = defaultdict(lambda: {None: 0})
        # A word of the dictionary is what the transform would find there.
        known[str] = self._words | dict.fromkeys((None, *self._marks), 0)
        return known

    def python_values(self, given: Sequence[Any], where: Where) -> list[Any]:
        """Returns Python's own values, after checking that they are single ones."""
        plain = [python_value(value) for value in given]
        for place, value in enumerate(plain):
            if not isinstance(value, Hashable) or isinstance(value, tuple):
                hint = " in the list" if self.feature.multi_hot else "; only multi_hot features have lists"
                raise ValueError(
                    f"{where(place)}: column '{self.feature.name}': expected single values, found a "
                    f"{type(value).__name__}{hint}"
                )
        return plain

    def remembered(self, given: Sequence[Any], kinds: set[type]) -> list[int | None]:
        """Returns the ids of values of some types, None where one is new."""
        known = self._known
        if len(kinds) > 1:
            return [known[type(value)].get(value) for value in given]
        (kind,) = kinds or (str,)
        return list(map(known[kind].get, given))

    def news(
        self, given: Sequence[Any], kinds: set[type], found: list[int | None], where: Where
    ) -> Iterator[tuple[Hashable, "_New"]]:
        """Yields the new values by type, each with the group of those that can be transformed together."""
        new = [place for place, known in enumerate(found) if known is None]
        if float in kinds:  # NaN is not even the same key as itself
            for place in [place for place in new if given[place] != given[place]]:
                found[place] = 0
            new = [place for place in new if found[place] is None]
        places: dict[type, list[int]] = dict.fromkeys(kinds, new)
        if len(kinds) > 1:
            places = {}
            for place in new:
                places.setdefault(type(given[place]), []).append(place)
        if wide := {place for place in places.get(int, ()) if given[place] not in _INT64}:
            places |= {_Wide: sorted(wide), int: [place for place in places[int] if place not in wide]}
        for kind, of_kind in places.items():
            if of_kind:
                # What Arrow makes of other types depends on all of their values.
                group = self.feature.ids, self.feature.values, kind, "" if kind in _GROUPED else self.feature.name
                yield group, _New(self, kind, where, found, [given[place] for place in of_kind], of_kind)

    def remember(self, new: list[Any], read: list[Any]) -> list[int]:
        """Returns the ids of new values, of which the transform made ids, or texts if there is a dictionary."""
        if self.feature.ids == "dictionary" and type(new[0]) is str and self.feature.values == "text":
            # The text of a text is itself, and the words are no new ones.
            read = [0 if word is None else FIRST_WORD - 1 for word in read]
        elif self.feature.ids == "dictionary":
            read = [0 if word is None else self._words.get(word, FIRST_WORD - 1) for word in read]
        if sum(map(len, self._known.values())) > self._most:
            self._known = self._unseen()
        kind, pairs = type(new[0]), list(zip(new, read, strict=True))
        if kind in (str, bytes) and max(map(len, new)) > _LONGEST:
            pairs = [pair for pair in pairs if len(pair[0]) <= _LONGEST]
        self._known[kind].update(pairs)
        return read


class _Wide:
    """Stands for integers beyond 64 bits, which are read as text."""


@dataclass
class _New:
    """Values of one feature and type that are new.

    Args:
        feature: feature.
        kind: type of the values.
        where: says which row the value at a place is from.
        found: ids of all values of the feature, to be completed.
        values: new values.
        places: their places among all values.
    """

    feature: _Feature
    kind: type
    where: Where
    found: list[int | None]
    values: list[Any]
    places: list[int]

    def take(self, read: list[Any]) -> None:
        """Completes the ids by what the transform made of the values."""
        read = self.feature.remember(self.values, read)
        if len(self.places) == len(self.found):
            self.found[:] = read
        else:
            for place, number in zip(self.places, read, strict=True):
                self.found[place] = number


def _read(parts: list[_New]) -> None:
    """Transforms new values of features with the same rule."""
    kind, flat = parts[0].kind, list(chain.from_iterable(part.values for part in parts))

    def where(place: int) -> str:
        for part in parts:
            if place < len(part.places):
                return f"{part.where(part.places[place])}: column '{part.feature.feature.name}'"
            place -= len(part.places)
        raise AssertionError

    features = [part.feature.feature for part in parts]
    limits = [0 if feature.ids == "dictionary" else feature.id_limit for feature in features]
    each = np.repeat(np.array(limits, np.int64), [len(part.places) for part in parts])
    refused: values.Rejects = {}
    if kind is _Wide:
        flat = list(map(str, flat))
    try:
        array = pa.array(flat, pa.string() if kind is str else None)
    except (ValueError, OverflowError, pa.ArrowException) as error:
        _raise_first({place: wrong for place, value in enumerate(flat) if (wrong := _why_not(value))}, where)
        raise ValueError(f"{where(0)}: {error}") from None
    try:
        read = read_ids(features[0], values.plain(array), refused, scoring=True, limits=each).to_pylist()
    except (ValueError, pa.ArrowException) as error:
        raise ValueError(f"{where(0)}: {error}") from None
    _raise_first(refused, where)
    of_parts = iter(read)
    for part in parts:
        part.take(list(islice(of_parts, len(part.places))))


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
