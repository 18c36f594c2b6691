"""Converts raw values of any Arrow type to text, numbers, integers or times.

A value has one text however it was stored: the integer 5, the float 5.0 and the decimal 5.00 are all ``5``, true is
``true``, and a time is ``2024-01-31 12:00:00``, without trailing zeros of a fraction and with ``Z`` if it has a time
zone. A float that is not a number is missing. Text stays as it is, because ``1.0`` may be a version.
"""

import re
from collections.abc import Callable
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Rejects = dict[int, str]  # position -> reason
Expected: TypeAlias = str | Callable[[int], str]  # what a value should be, at its position if that matters
_WHOLE = re.compile(r"\s*([+-]?)0*([0-9]+)(?:\.0*)?\s*")
# What is the text of an integer already.
_PLAIN = "^(0|[1-9][0-9]{0,39})$"
# From this number on, several integers share one float.
_EXACT = {pa.float16(): 2**11, pa.float32(): 2**24, pa.float64(): 2**53}


def plain(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Returns a column as one array of plain values, whatever its storage: dictionaries, runs, views, extensions.

    The values of a list may still need the same conversion.
    """
    array = column
    if isinstance(column, pa.ChunkedArray):
        if column.num_chunks == 0:
            array = pa.array([], column.type)
        else:
            array = column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
    if isinstance(array, pa.ExtensionArray):
        return plain(array.storage)
    kind = array.type
    if pa.types.is_dictionary(kind):
        return plain(array.dictionary_decode())
    if pa.types.is_run_end_encoded(kind):
        return plain(pc.run_end_decode(array))
    if pa.types.is_null(kind) or pa.types.is_string_view(kind):
        return array.cast(pa.string())
    if pa.types.is_binary_view(kind) or pa.types.is_fixed_size_binary(kind):
        return array.cast(pa.binary())
    if pa.types.is_fixed_size_list(kind):
        return array.cast(pa.list_(kind.value_type))
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        # PyArrow's cast of a view loses values.
        return pa.array(array.to_pylist(), pa.list_(kind.value_type))
    return array


def is_text(kind: pa.DataType) -> bool:
    """Returns whether a plain column holds text."""
    types = pa.types
    return bool(
        types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind)
    )


def is_list(kind: pa.DataType) -> bool:
    """Returns whether a plain column holds lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def lengths(lists: pa.Array) -> np.ndarray:
    """Returns the number of values in each row; 0 if the list is missing."""
    return pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)


def is_empty(text: pa.Array) -> pa.Array:
    """Returns whether each text is empty; null where it is missing."""
    return pc.equal(pc.binary_length(text), 0)


def without_empty(text: pa.Array) -> pa.Array:
    """Replaces empty texts by missing values, as between two delimiters."""
    empty = is_empty(text)
    return pc.if_else(empty, pa.scalar(None, text.type), text) if pc.any(empty).as_py() else text


def show(value: Any) -> str:
    """Formats a value for an error message."""
    if value is None:
        return "nothing"
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    return repr(text if len(text) <= 40 else text[:40] + "...")


def refuse(flat: pa.Array, bad: np.ndarray, refused: Rejects, expected: Expected) -> None:
    """Records why some values cannot be read."""
    for position in np.flatnonzero(bad).tolist():
        wanted = expected if isinstance(expected, str) else expected(position)
        refused.setdefault(position, f"expected {wanted}, found {show(flat[position].as_py())}")


def text(flat: pa.Array, refused: Rejects) -> pa.Array:
    """Converts values to text; null where missing or refused.

    Example:
        >>> import pyarrow as pa
        >>> refused = {}
        >>> text(pa.array([5.0, None, 0.5]), refused).to_pylist(), list(refused)
        (['5', None, None], [2])

    Args:
        flat: plain values.
        refused: receives the position and reason of each value without a text of its own.

    Raises:
        ValueError: If values of this type have no text.
    """
    kind = flat.type
    if is_text(kind):
        return _utf8(flat, refused)
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return flat.cast(pa.string())
    if pa.types.is_floating(kind):
        return _whole_floats(flat, refused).cast(pa.string())
    if pa.types.is_decimal(kind):
        return _whole_decimals(flat, refused)
    if pa.types.is_date(kind):
        return flat.cast(pa.date32(), safe=False).cast(pa.string())
    if pa.types.is_timestamp(kind) or pa.types.is_time(kind):
        if pa.types.is_timestamp(kind) and kind.tz is not None:
            flat = flat.cast(pa.timestamp(kind.unit, "UTC"))
        digits = pc.replace_substring_regex(flat.cast(pa.string()), r"(\.[0-9]*?)0+(Z?)$", r"\1\2")
        return pc.replace_substring_regex(digits, r"\.(Z?)$", r"\1")
    raise ValueError(f"expected text, numbers, dates or times, found {kind}")


def whole(flat: pa.Array, refused: Rejects, expected: Expected) -> pa.Array:
    """Converts integers to decimal text without leading zeros; null where missing or refused.

    Text may have blanks around the integer, a sign, or zeros after the point: ``5``, `` 5``, ``+5``, ``5.0``.

    Args:
        flat: plain values.
        refused: receives the position and reason of each value that is not an integer.
        expected: what a value should be, for the reason.

    Raises:
        ValueError: If this type does not hold integers.
    """
    kind = flat.type
    if is_text(kind):
        words = without_empty(_utf8(flat, refused))
        if pc.all(pc.match_substring_regex(words, _PLAIN)).as_py() is not False:
            return words
        return per_distinct(words, _whole_text, pa.string(), refused, expected)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return text(flat, refused)
    raise ValueError(f"expected integers, found {kind}")


def numbers(flat: pa.Array, refused: Rejects) -> pa.Array:
    """Converts values to float64; null where missing, NaN or refused.

    Args:
        flat: plain values.
        refused: receives the position and reason of each value that is not a finite number.

    Raises:
        ValueError: If this type does not hold numbers.
    """
    expected, kind = "a finite number", flat.type
    if is_text(kind):
        words = without_empty(_utf8(flat, refused))
        try:
            found = words.cast(pa.float64())
        except pa.ArrowInvalid:
            found = per_distinct(words, _float, pa.float64(), refused, expected)
    elif pa.types.is_boolean(kind):
        found = flat.cast(pa.int8()).cast(pa.float64())
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        found = flat.cast(pa.float64(), safe=False)
    else:
        raise ValueError(f"expected numbers, found {kind}")
    plain_numbers = found.to_numpy(zero_copy_only=False)
    infinite = np.isinf(plain_numbers)
    if infinite.any():
        refuse(flat, infinite, refused, expected)
        plain_numbers = np.where(infinite, np.nan, plain_numbers)
    return pa.array(plain_numbers, from_pandas=True)


def times(flat: pa.Array, refused: Rejects) -> pa.Array:
    """Converts times to float64: numbers as they are, dates and timestamps as seconds since 1970 (UTC by default).

    Args:
        flat: plain values: numbers, dates, timestamps, or text that holds numbers or ISO 8601.
        refused: receives the position and reason of each value that is not a time.

    Raises:
        ValueError: If this type does not hold times.
    """
    expected, kind = "a number, a date or a time such as 2024-01-31T12:00:00", flat.type
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        micros = flat.cast(pa.timestamp("us", getattr(kind, "tz", None)), safe=False).cast(pa.int64())
        return pc.divide(micros.cast(pa.float64()), 1e6)
    if is_text(kind):
        words = without_empty(_utf8(flat, refused))
        try:
            return numbers(words.cast(pa.float64()), refused)
        except pa.ArrowInvalid:
            return per_distinct(words, _moment, pa.float64(), refused, expected)
    try:
        return numbers(flat, refused)
    except ValueError:
        raise ValueError(f"expected numbers, dates or times, found {kind}") from None


def per_distinct(
    flat: pa.Array, convert: Callable[[str], Any], kind: pa.DataType, refused: Rejects, expected: Expected
) -> pa.Array:
    """Converts each distinct text once; ``convert`` returns None for a text that it refuses."""
    distinct = flat.dictionary_encode()
    converted = pa.array([convert(word) for word in distinct.dictionary.to_pylist()], kind)
    result = pc.take(converted, distinct.indices)
    if converted.null_count:
        bad = pc.and_(pc.is_valid(flat), pc.is_null(result)).to_numpy(zero_copy_only=False)
        refuse(flat, bad, refused, expected)
    return result


def _utf8(flat: pa.Array, refused: Rejects) -> pa.Array:
    try:
        return flat.cast(pa.binary()).cast(pa.string())
    except pa.ArrowInvalid:
        encoded = flat.cast(pa.binary())
        distinct = encoded.dictionary_encode()
        good = [_is_utf8(word) for word in distinct.dictionary.to_pylist()]
        fits = pc.take(pa.array(good, pa.bool_()), distinct.indices)
        refuse(flat, ~pc.fill_null(fits, True).to_numpy(zero_copy_only=False), refused, "valid UTF-8")
        return pc.if_else(fits, encoded, pa.scalar(None, pa.binary())).cast(pa.string())


def _is_utf8(word: bytes) -> bool:
    try:
        word.decode()
    except UnicodeDecodeError:
        return False
    return True


def _whole_floats(flat: pa.Array, refused: Rejects) -> pa.Array:
    """Converts floats to int64; pandas stores integers with missing values as floats, in which NaN is missing."""
    exact = _EXACT[flat.type]
    found = flat.to_numpy(zero_copy_only=False).astype(np.float64)
    given = ~np.isnan(found)
    fits = given & (np.abs(found) < exact) & (np.floor(found) == found)
    refuse(flat, given & ~fits, refused, f"a whole number below 2**{exact.bit_length() - 1} in a {flat.type} column")
    return pa.array(np.where(fits, found, 0).astype(np.int64), mask=~fits)


def _whole_decimals(flat: pa.Array, refused: Rejects) -> pa.Array:
    def convert(value: Decimal) -> str | None:
        return str(int(value)) if value == int(value) else None

    if not (pa.types.is_decimal128(flat.type) or pa.types.is_decimal256(flat.type)):
        # PyArrow cannot dictionary-encode the narrow decimals.
        flat = flat.cast(pa.decimal128(flat.type.precision, flat.type.scale))
    return per_distinct(flat, convert, pa.string(), refused, "a whole number")  # type: ignore[arg-type]


def _whole_text(word: str) -> str | None:
    # int() refuses texts of more than 4,300 digits; no id is that long.
    found = _WHOLE.fullmatch(word) if len(word) <= 4000 else None
    if found is None:
        return None
    sign = "-" if found[1] == "-" and found[2] != "0" else ""
    return sign + found[2]


def _float(word: str) -> float | None:
    try:
        return pa.scalar(word).cast(pa.float64()).as_py()
    except pa.ArrowInvalid:
        return None


def _moment(word: str) -> float | None:
    number = _float(word)
    if number is not None:
        return number if np.isfinite(number) else None
    try:
        # Python 3.10 reads neither Z nor fractions of other than three or six digits.
        moment = datetime.fromisoformat(_fraction(word.strip()))
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return moment.timestamp()


def _fraction(word: str) -> str:
    word = re.sub(r"[zZ]$", "+00:00", word)
    return re.sub(r"\.([0-9]{1,9})", lambda found: "." + found[1][:6].ljust(6, "0"), word, count=1)
