"""What the transform of training and file scoring makes of the raw values of a feature, however few there are."""

import re
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from nasrec_torchrec.datasets import transform, values
from nasrec_torchrec.datasets.features import FIRST_WORD, SparseFeature
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
        features = [schema.dense[place] for place in places]
        self.places, self.names = places, [feature.name for feature in features]
        self.standardized = features[0].transform == "standardize"
        # A schema has a sparse feature: one without a value in any row.
        nothing = SparseFeature("nothing", 1)
        self._parsing = Schema("label", (replace(features[0], name="number", age_of="", at="", column=""),), (nothing,))
        # Mean and deviation are a feature's own.
        finished = features if self.standardized else features[:1]
        numbered = tuple(
            replace(feature, name=str(place), age_of="", at="", column="") for place, feature in enumerate(finished)
        )
        self._finishing = Schema("label", numbered, (nothing,))

    def transform(self, raw: np.ndarray, count: int, where: Where) -> np.ndarray:
        """Numbers of one feature after the other, as ``(features, rows)`` in float32."""
        table = pa.table({"number": raw, "nothing": pa.nulls(len(raw), pa.int64())})
        parsed, rejects = transform.parse(table, self._parsing, scoring=True)
        for place in sorted(rejects):
            raise ValueError(f"{where(place)}: {reason(rejects[place])}")
        number = values.plain(parsed.column("number"))
        size = count if self.standardized else len(raw)
        columns = {feature.name: number.slice(i * size, size) for i, feature in enumerate(self._finishing.dense)}
        table = pa.table({**columns, "nothing": pa.array(np.zeros(size, np.int32))})
        prepared, rejects = transform.finish(table, self._finishing, {})
        for row in sorted(rejects):
            number = int(rejects[row].split("'")[1])
            raise ValueError(f"{where(number * count + row)}: {reason(rejects[row])}")
        found = [prepared.column(name).to_numpy() for name in columns]
        return np.concatenate(found).reshape(len(self.names), -1)


class Ids:
    """What the transform makes of the values of one feature."""

    def __init__(self, schema: Schema, feature: SparseFeature, dictionaries: Mapping[str, pa.Array]) -> None:
        self._feature = feature
        ids: Any = "id" if feature.cross else feature.ids
        rule = replace(feature, multi_hot=False, weighted=False, cross=(), edges=(), column="", ids=ids)
        self._schema = Schema(schema.label, (), (rule,))
        self._words = _index(dictionaries[feature.table]) if feature.ids == "dictionary" and not feature.cross else None
        # A list's values are what stands between separators, so none of them can be the text of a missing list.
        self._always: dict[Any, int] = {None: 0}
        if not feature.multi_hot:
            self._always |= dict.fromkeys(schema.text.missing, 0)
        self._known: dict[Any, int] = dict(self._always)

    def read(self, flat: list[Any], where: Where) -> list[int]:
        """Returns the ids of values; an id that the table does not have is -1, see ``NO_ROW``.

        Args:
            flat: one value of each row, or those of all lists.
            where: says which row the value at a place is from.
        """
        known = self._known
        kinds = set(map(type, flat))
        if not kinds <= _SIMPLE:
            flat = self._python(flat, where)
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
            for (value, places), read in zip(placed.items(), self._read(placed, where), strict=True):
                for place in places:
                    found[place] = read
                if not isinstance(value, str | bytes) or len(value) <= _LONGEST:
                    known[keys[places[0]]] = read
        assert None not in found
        return found  # type: ignore[return-value]

    def _python(self, flat: list[Any], where: Where) -> list[Any]:
        plain = [python_value(value) for value in flat]
        for place, value in enumerate(plain):
            if not isinstance(value, Hashable) or isinstance(value, tuple):
                hint = " in the list" if self._feature.multi_hot else "; only multi_hot features have lists"
                raise ValueError(
                    f"{where(place)}: column '{self._feature.name}': expected single values, found a "
                    f"{type(value).__name__}{hint}"
                )
        return plain

    def _read(self, placed: Mapping[Any, list[int]], where: Where) -> list[int]:
        name, given = self._feature.name, list(placed)
        try:
            parsed, rejects = transform.parse(pa.table({name: pa.array(given)}), self._schema, scoring=True)
        except (ValueError, OverflowError, pa.ArrowException) as error:
            rejects = {0: str(error)}
        if rejects:
            first = min(rejects, key=lambda number: placed[given[number]][0])
            place = placed[given[first]][0]
            raise ValueError(f"{where(place)}: column '{name}': {reason(rejects[first])}")
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


class Crossed:
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


def _index(words: pa.Array) -> dict[str, int]:
    """Returns the ids of a dictionary's words, which the transform looks up in the dictionary itself."""
    return {word: FIRST_WORD + place for place, word in enumerate(words.to_pylist())}


def reason(reject: str) -> str:
    """Why a value was rejected, without the column."""
    return re.sub(r"^column '[^']*': ", "", reject)
