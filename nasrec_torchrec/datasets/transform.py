"""Raw columns into prepared columns, a whole column at a time; rows that cannot be read are set aside.

Preparation runs in two steps because some rules need the whole training split: :func:`parse` does all that a row
decides alone, and :func:`finish` what a dictionary or a mean is needed for. Scoring raw rows does both at once.
"""

import binascii
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nasrec_torchrec.datasets import history
from nasrec_torchrec.datasets.schema import FIRST_WORD, DenseFeature, Schema, SparseFeature

Rejects = dict[int, str]  # row -> why
_INTEGER = re.compile(r"-?[0-9]+")
_HEX = re.compile(r"-?[0-9a-fA-F]+")


def parse(table: pa.Table, schema: Schema, what: Mapping[str, str] | None = None) -> tuple[pa.Table, Rejects]:
    """Reads the raw columns of a schema.

    Args:
        table: raw columns: text, numbers, or lists of either; null is missing.
        schema: what they mean.
        what: further columns to read as ``number`` or ``text``; they must not be missing.

    Returns:
        tuple: the rows that could be read; and per rejected row of ``table`` the reason. Columns with a dictionary
        are still text and columns to standardize still raw, with NaN where missing.

    Raises:
        ValueError: when the type of a column can never fit.
    """
    rejects: Rejects = {}
    columns: dict[str, pa.Array] = {schema.label: _label(table, schema, rejects)}
    for dense in schema.dense:
        columns[dense.name] = _dense(_column(table, dense.name), dense, rejects)
    for sparse in schema.sparse:
        if sparse.cross:
            continue
        values = _lists(table, sparse.name, sparse.separator) if sparse.multi_hot else _column(table, sparse.name)
        columns[sparse.name] = _elements(values, partial(_ids, sparse), sparse.name, rejects)
        if sparse.weights_column:
            weights = _lists(table, sparse.weights_column, sparse.separator)
            columns[sparse.weights_column] = _elements(weights, _weights, sparse.weights_column, rejects)
            for row in np.flatnonzero(_lengths(values) != _lengths(weights)):
                rejects.setdefault(int(row), f"column '{sparse.weights_column}': expected one weight per value")
    for name, kind in (what or {}).items():
        read = _numbers if kind == "number" else _text
        columns[name] = _elements(_column(table, name), read, name, rejects, required=True)
    parsed = pa.table(columns)
    if rejects:
        keep = np.ones(table.num_rows, bool)
        keep[list(rejects)] = False
        parsed = parsed.filter(pa.array(keep))
    return parsed, rejects


def finish(table: pa.Table, schema: Schema, dictionaries: Mapping[str, pa.Array]) -> pa.Table:
    """Applies what was measured on the training split to parsed rows.

    Args:
        table: of :func:`parse`.
        schema: with mean, deviation and num_embeddings filled in.
        dictionaries: per table with a dictionary its words, in the order of their ids.
    """
    for dense in schema.dense:
        if dense.transform == "standardize":
            assert dense.mean is not None and dense.deviation is not None
            raw = table.column(dense.name).to_numpy()
            scaled = np.nan_to_num((raw - dense.mean) / dense.deviation, nan=0.0).astype(np.float32)
            table = _replace(table, dense.name, pa.array(scaled))
    for sparse in schema.sparse:
        if sparse.ids == "dictionary" and not sparse.cross:
            words = dictionaries[sparse.table]
            column = _column(table, sparse.name)
            ids = _elements(column, partial(_look_up, sparse, words), sparse.name, {})
            table = _replace(table, sparse.name, ids)
    return add_crosses(table, schema.crosses, dictionaries)


def add_crosses(table: pa.Table, crosses: Sequence[SparseFeature], dictionaries: Mapping[str, pa.Array]) -> pa.Table:
    """Appends the columns of crosses to rows whose other ids are prepared.

    Args:
        table: with the prepared ids that the crosses combine.
        crosses: to append.
        dictionaries: per table with a dictionary its words; of histories also their counts.
    """
    for feature in crosses:
        values = combine(table, feature)
        if feature.ids == "history":
            words = dictionaries[feature.table]
            assert isinstance(words, pa.StructArray)
            ids = history.look_up(values, words)
        elif feature.ids == "dictionary":
            ids = _look_up(feature, dictionaries[feature.table], values, {})
        else:
            ids = _ids(feature, values, {})
        table = table.append_column(feature.name, ids)
    return table


def combine(table: pa.Table, cross: SparseFeature) -> pa.Array:
    """The value of a cross in every row, as text: the prepared ids of its features with commas between them."""
    texts = [_column(table, name).cast(pa.string()) for name in cross.cross]
    return pc.binary_join_element_wise(*texts, ",")


def hash_text(value: bytes) -> int:
    """The hash behind ``hash`` ids: the first 8 bytes of BLAKE2b, little-endian. It never changes."""
    return int.from_bytes(hashlib.blake2b(value, digest_size=8).digest(), "little")


def _column(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name).combine_chunks()
    array: pa.Array = column.chunk(0) if isinstance(column, pa.ChunkedArray) and column.num_chunks else column
    if isinstance(array, pa.ChunkedArray):
        array = pa.array([], array.type)
    if pa.types.is_null(array.type):
        return array.cast(pa.string())
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _replace(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, column)


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _show(value: Any) -> str:
    if value is None:
        return "nothing"
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    return repr(text if len(text) <= 40 else text[:40] + "...")


def _elements(
    column: pa.Array, read: Callable[[pa.Array, Rejects], pa.Array], name: str, rejects: Rejects, required: bool = False
) -> pa.Array:
    """Applies ``read`` to the values of a column or of its lists, and rejects the rows of those that it refuses."""
    refused: Rejects = {}
    if not _is_list(column.type):
        result = read(column, refused)
        if required and column.null_count:
            refused |= dict.fromkeys(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)), "it is missing")
        rows = list(refused)
    else:
        ends = np.cumsum(_lengths(column))
        # flatten() also leaves out what lies under a null list.
        values = read(column.flatten(), refused)
        offsets = np.concatenate([[0], ends])
        if offsets[-1] >= 2**31:
            raise ValueError(f"column '{name}': more than 2**31 values in one piece of the data")
        result = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)
        rows = [int(row) for row in np.searchsorted(ends, list(refused), side="right")]
    for row, reason in zip(rows, refused.values(), strict=True):
        rejects.setdefault(int(row), f"column '{name}': {reason}")
    return result


def _lists(table: pa.Table, name: str, separator: str) -> pa.Array:
    column = _column(table, name)
    if _is_list(column.type):
        return column
    if not _is_text(column.type):
        raise ValueError(f"column '{name}': expected lists, or text that '{separator}' separates, found {column.type}")
    # A missing list is an empty one, while splitting '' would give one empty value.
    return pc.split_pattern(pc.if_else(_is_empty(column), pa.scalar(None, column.type), column), separator)


def _lengths(lists: pa.Array) -> np.ndarray:
    return pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)


def _is_empty(text: pa.Array) -> pa.Array:
    return pc.equal(pc.binary_length(text), 0)


def _refuse(flat: pa.Array, bad: np.ndarray, refused: Rejects, expected: str) -> None:
    for position in np.flatnonzero(bad):
        refused.setdefault(int(position), f"expected {expected}, found {_show(flat[int(position)].as_py())}")


def _text(flat: pa.Array, refused: Rejects) -> pa.Array:
    """Values as valid UTF-8; what is refused becomes null."""
    if not _is_text(flat.type):
        if not (pa.types.is_integer(flat.type) or pa.types.is_boolean(flat.type) or pa.types.is_floating(flat.type)):
            raise ValueError(f"expected text or numbers, found {flat.type}")
        return flat.cast(pa.string())
    try:
        return flat.cast(pa.binary()).cast(pa.string())
    except pa.ArrowInvalid:
        encoded = flat.cast(pa.binary())
        distinct = encoded.dictionary_encode()
        good = [_is_utf8(word) for word in distinct.dictionary.to_pylist()]
        fits = pc.take(pa.array(good, pa.bool_()), distinct.indices)
        _refuse(flat, ~pc.fill_null(fits, True).to_numpy(zero_copy_only=False), refused, "valid UTF-8")
        return pc.if_else(fits, encoded, pa.scalar(None, pa.binary())).cast(pa.string())


def _is_utf8(word: bytes) -> bool:
    try:
        word.decode()
    except UnicodeDecodeError:
        return False
    return True


def _per_distinct(
    flat: pa.Array, convert: Callable[[str], Any], kind: pa.DataType, refused: Rejects, expected: str
) -> pa.Array:
    """Converts each distinct text once; ``convert`` gives None for what it refuses."""
    distinct = flat.dictionary_encode()
    converted = pa.array([convert(word) for word in distinct.dictionary.to_pylist()], kind)
    result = pc.take(converted, distinct.indices)
    if converted.null_count:
        bad = pc.and_(pc.is_valid(flat), pc.is_null(result)).to_numpy(zero_copy_only=False)
        _refuse(flat, bad, refused, expected)
    return result


def _numbers(flat: pa.Array, refused: Rejects) -> pa.Array:
    """Values as float64; null where missing, NaN or refused."""
    expected = "a finite number"
    if _is_text(flat.type):
        text = _text(flat, refused)
        try:
            numbers = text.cast(pa.float64())
        except pa.ArrowInvalid:
            numbers = _per_distinct(text, _float, pa.float64(), refused, expected)
    elif pa.types.is_boolean(flat.type):
        numbers = flat.cast(pa.int8()).cast(pa.float64())
    elif pa.types.is_integer(flat.type) or pa.types.is_floating(flat.type) or pa.types.is_decimal(flat.type):
        numbers = flat.cast(pa.float64(), safe=False)
    else:
        raise ValueError(f"expected numbers, found {flat.type}")
    infinite = pc.fill_null(pc.is_inf(numbers), False).to_numpy(zero_copy_only=False)
    if infinite.any():
        _refuse(flat, infinite, refused, expected)
    return pc.if_else(pc.is_finite(numbers), numbers, pa.scalar(None, pa.float64()))


def _float(word: str) -> float | None:
    try:
        return pa.scalar(word).cast(pa.float64()).as_py()
    except pa.ArrowInvalid:
        return None


def _weights(flat: pa.Array, refused: Rejects) -> pa.Array:
    numbers = _numbers(flat, refused)
    if numbers.null_count:
        missing = numbers.is_null().to_numpy(zero_copy_only=False)
        _refuse(flat, missing, refused, "a finite number")
    return pc.fill_null(_float32(flat, numbers, refused), 0.0)


def _float32(flat: pa.Array, numbers: pa.Array, refused: Rejects) -> pa.Array:
    narrow = numbers.cast(pa.float32(), safe=False)
    lost = pc.fill_null(pc.is_inf(narrow), False).to_numpy(zero_copy_only=False)
    if lost.any():
        _refuse(flat, lost, refused, "a number that float32 can hold")
    return narrow


def _label(table: pa.Table, schema: Schema, rejects: Rejects) -> pa.Array:
    column = _column(table, schema.label)
    refused: Rejects = {}
    numbers = _numbers(column, {})
    if schema.label_above is None:
        clicks = pc.equal(numbers, 1.0)
        fits = pc.or_(clicks, pc.equal(numbers, 0.0))
        expected = "0 or 1"
    else:
        clicks = pc.greater(numbers, float(schema.label_above))
        fits = pc.is_valid(numbers)
        expected = "a finite number"
    _refuse(column, ~pc.fill_null(fits, False).to_numpy(zero_copy_only=False), refused, expected)
    for row, reason in refused.items():
        rejects.setdefault(row, f"label '{schema.label}': {reason}")
    return pc.fill_null(clicks, False).cast(pa.int8())


def _dense(column: pa.Array, feature: DenseFeature, rejects: Rejects) -> pa.Array:
    def read(flat: pa.Array, refused: Rejects) -> pa.Array:
        numbers = _numbers(flat, refused)
        if feature.transform == "standardize":
            return pc.fill_null(numbers, float("nan"))
        if feature.transform == "log1p":
            values = pc.fill_null(numbers, 0.0).to_numpy(zero_copy_only=False)
            return pa.array(np.log1p(np.maximum(values, 0.0)).astype(np.float32))
        return pc.fill_null(_float32(flat, numbers, refused), 0.0)

    return _elements(column, read, feature.name, rejects)


def _ids(feature: SparseFeature, flat: pa.Array, refused: Rejects) -> pa.Array:
    """Values as ids, or as text where a dictionary will number them; missing is 0, or null in text."""
    if feature.ids in ("dictionary", "hash"):
        text = _text(flat, refused)
        # An empty text of a Parquet file is as missing as one between two delimiters.
        text = pc.if_else(_is_empty(text), pa.scalar(None, text.type), text)
        if feature.ids == "dictionary":
            return text
    assert feature.num_embeddings is not None
    modulus = feature.num_embeddings - 1
    kind = pa.int32() if feature.num_embeddings < 2**31 else pa.int64()
    match feature.ids:
        case "hash":
            ids = _per_distinct(text, lambda word: hash_text(word.encode()) % modulus + 1, kind, refused, "text")
        case "hex":
            ids = _hexadecimal(flat, modulus, kind, refused)
        case "modulo":
            ids = _integers(flat, lambda value: _fold(value, modulus), kind, refused, "an integer, -1 or more")
        case _:
            last = feature.num_embeddings - 1

            def check(value: int) -> int | None:
                return value if 0 <= value <= last else None

            ids = _integers(flat, check, kind, refused, f"an id in 0..{last}")
    return pc.fill_null(ids, 0)


def _hexadecimal(flat: pa.Array, modulus: int, kind: pa.DataType, refused: Rejects) -> pa.Array:
    if not _is_text(flat.type):
        raise ValueError(f"expected hexadecimal text, found {flat.type}")
    words = pc.if_else(_is_empty(flat), pa.scalar(None, flat.type), flat).cast(pa.binary())
    present = words.drop_null()
    # Criteo's ids are all eight digits long: decode them in one go.
    eight = len(present) > 0 and pc.all(pc.equal(pc.binary_length(present), 8)).as_py()
    if eight:
        offsets = np.frombuffer(present.buffers()[1], np.int32)[present.offset : present.offset + len(present) + 1]
        try:
            decoded = binascii.unhexlify(memoryview(present.buffers()[2])[offsets[0] : offsets[-1]])
        except binascii.Error:
            eight = False
    if eight:
        values = np.frombuffer(decoded, ">u4").astype(np.int64) % modulus + 1
        ids = np.zeros(len(words), np.int64)
        ids[words.is_valid().to_numpy(zero_copy_only=False)] = values
        return pa.array(ids).cast(kind)
    convert = _matching(_HEX, lambda word: _fold(int(word, 16), modulus))
    return _per_distinct(_text(words, refused), convert, kind, refused, "hexadecimal digits")


def _fold(value: int, modulus: int) -> int | None:
    """fmod(value, modulus) + 1, as the research code has it: -1 stands for missing; lower values have no row."""
    return value % modulus + 1 if value >= 0 else 0 if value == -1 else None


def _integers(
    flat: pa.Array, convert: Callable[[int], int | None], kind: pa.DataType, refused: Rejects, expected: str
) -> pa.Array:
    if pa.types.is_floating(flat.type):
        # pandas stores integers with gaps as floats.
        flat = pc.if_else(pc.is_nan(flat), pa.scalar(None, flat.type), flat)
        whole = pc.fill_null(pc.equal(pc.floor(flat), flat), True).to_numpy(zero_copy_only=False)
        whole &= np.abs(pc.fill_null(flat, 0).to_numpy(zero_copy_only=False).astype(np.float64)) < 2**53
        _refuse(flat, ~whole, refused, expected)
        flat = pc.if_else(pa.array(whole), flat, pa.scalar(None, flat.type)).cast(pa.int64())
    if not (pa.types.is_integer(flat.type) or _is_text(flat.type)):
        raise ValueError(f"expected integers, found {flat.type}")
    text = _text(flat, refused)
    text = pc.if_else(_is_empty(text), pa.scalar(None, text.type), text)
    return _per_distinct(text, _matching(_INTEGER, lambda word: convert(int(word))), kind, refused, expected)


def _matching(pattern: re.Pattern[str], convert: Callable[[str], int | None]) -> Callable[[str], int | None]:
    # int() refuses texts of more than 4,300 digits; no id is that long.
    return lambda word: convert(word) if len(word) <= 4000 and pattern.fullmatch(word) else None


def _look_up(feature: SparseFeature, words: pa.Array, flat: pa.Array, _: Rejects) -> pa.Array:
    found = pc.index_in(flat, value_set=words)
    ids = pc.if_else(flat.is_null(), 0, pc.add(pc.fill_null(found, 1 - FIRST_WORD), FIRST_WORD))
    assert feature.num_embeddings is not None
    return ids.cast(pa.int32() if feature.num_embeddings < 2**31 else pa.int64())
