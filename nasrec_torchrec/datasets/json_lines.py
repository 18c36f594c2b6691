"""JSON lines: text files with one JSON object a line."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from nasrec_torchrec.datasets.config import TextFormat
from nasrec_torchrec.datasets.lines import first_lines
from nasrec_torchrec.datasets.names import flat
from nasrec_torchrec.datasets.sources import Piece, Source
from nasrec_torchrec.datasets.values import show

_BOM = b"\xef\xbb\xbf"
# Objects whose keys are the columns of a file; later ones may leave some out, but add none.
_KEYS_OF = 10_000


def keys(source: Source) -> tuple[str, ...]:
    """Returns the keys of the first objects of a file, in the order in which they first appear.

    An object stands for its members, in lines where it is null too.

    Raises:
        ValueError: If none of the lines is an object.
    """
    found: dict[str, None] = {}
    for line in first_lines(source, _KEYS_OF):
        entry = _object(line)
        if isinstance(entry, dict):
            found |= dict.fromkeys(entry)
    if not found:
        raise ValueError(f"{source.uri}: expected a JSON object with keys in every line, found none in the first lines")
    # What is an object in one line and null in another is its members; as a column of its own it would be empty.
    objects = {name[:end] for name in found for end, sign in enumerate(name) if sign == "."}
    return tuple(name for name in found if name not in objects)


def read_objects(
    piece: Piece, wanted: Sequence[str], text_format: TextFormat
) -> tuple[pa.Table, np.ndarray, dict[int, str]]:
    """Reads lines of JSON objects as columns.

    A text that stands for a missing value, an absent key and ``null`` are missing. Values of several kinds in one
    column become text, as they would be in a text file.

    Args:
        piece: whole lines.
        wanted: keys to read.
        text_format: the texts that stand for missing values.

    Returns:
        tuple: The columns, the line number of each row, and the reason of each rejected line.
    """
    assert isinstance(piece.data, bytes)
    marks = frozenset(text_format.missing)
    rejected: dict[int, str] = {}
    numbers: list[int] = []
    rows: list[dict[str, Any]] = []
    lines = piece.data.removeprefix(_BOM if piece.first_line == 1 else b"").split(b"\n")
    for number, line in enumerate(lines, start=piece.first_line):
        if not line.strip():
            continue
        entry = _object(line)
        if isinstance(entry, dict):
            rows.append(entry)
            numbers.append(number)
        else:
            rejected[number] = f"expected a JSON object, found {entry}"
    columns = {name: _column([_given(row.get(name), marks) for row in rows]) for name in wanted}
    if not columns:
        return pa.table({"": pa.nulls(len(rows))}).select([]), np.array(numbers, np.int64), rejected
    return pa.table(columns), np.array(numbers, np.int64), rejected


def _object(line: bytes) -> dict[str, Any] | str:
    """The object in a line, or what is there instead."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):  # also what is no UTF-8
        return show(line)
    return flat(entry) if isinstance(entry, dict) else show(line)


def _given(value: Any, marks: frozenset[str]) -> Any:
    return None if isinstance(value, str) and value in marks else value


def _column(values: list[Any]) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        values, kinds = [None if value is None else float(value) for value in values], {float}
    if len(kinds) <= 1:
        try:
            return pa.array(values)
        except (pa.ArrowException, OverflowError):  # lists of several kinds, integers beyond 64 bits
            pass
    return pa.array([_text(value) for value in values], pa.list_(pa.string()) if list in kinds else pa.string())


def _text(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        return [_text(entry) for entry in value]
    return json.dumps(value)
