"""Features that are computed from times: the hour and the weekday of a moment, and the days between two moments.

Preparation, file scoring and serving compute them by the functions here.
"""

import numpy as np
import pyarrow as pa

from nasrec_torchrec.datasets import values

_HOUR, _DAY = 3600, 86400
# The first day of 1970 was a Thursday; weeks begin on Monday.
_THURSDAY = 3
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def ids(kind: str, seconds: pa.Array) -> pa.Array:
    """Returns the hour or the weekday of moments as ids.

    Args:
        kind: ``hour``, 1 for 0:00 to 0:59 and so on, or ``weekday``, 1 for Monday and so on.
        seconds: seconds since 1970 (UTC), null where missing.

    Returns:
        Ids in int32, 0 where the moment is missing.
    """
    known = seconds.is_valid().to_numpy(zero_copy_only=False)
    found = np.nan_to_num(seconds.to_numpy(zero_copy_only=False))
    hours, days = np.floor_divide(found, _HOUR), np.floor_divide(found, _DAY)
    number = hours % 24 if kind == "hour" else (days + _THURSDAY) % 7
    return pa.array(np.where(known, number + 1, 0).astype(np.int32))


def days_between(start: pa.Array, end: pa.Array) -> pa.Array:
    """Returns the days from one moment to another, in float64; null where one of them is missing."""
    first, last = (moment.to_numpy(zero_copy_only=False).astype(np.float64) for moment in (start, end))
    return pa.array((last - first) / _DAY, from_pandas=True)


def name_of(kind: str, number: int) -> str:
    """Returns what an id other than 0 stands for, for people.

    Example:
        >>> name_of("hour", 1), name_of("weekday", 7)
        ('0:00', 'Sunday')
    """
    return f"{number - 1}:00" if kind == "hour" else WEEKDAYS[number - 1]


def moments(flat: pa.Array, refused: values.Rejects) -> pa.Array:
    """Converts moments to seconds since 1970 in float64; null where missing or refused.

    See :func:`nasrec_torchrec.datasets.values.times`. Numbers are seconds, or milli-, micro- or nanoseconds if they are
    so large that seconds would be beyond the year 5138. What does not say a time zone is taken as UTC.
    """
    kind = flat.type
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return values.times(flat, refused)
    if not values.is_text(kind):
        return pa.array(_seconds(values.times(flat, refused)), from_pandas=True)
    words = values.without_empty(values.text(flat, refused))
    try:
        return moments(words.cast(pa.float64()), refused)
    except pa.ArrowInvalid:
        pass
    distinct = words.dictionary_encode()
    wrong: values.Rejects = {}
    # A number among texts is one that another piece of the file would have read as a number.
    numbers = [_number(word) for word in distinct.dictionary.to_pylist()]
    read = values.times(distinct.dictionary, wrong)
    seconds = np.where([number is None for number in numbers], read.to_numpy(zero_copy_only=False), _scaled(numbers))
    result = pa.array(seconds, from_pandas=True).take(distinct.indices)
    bad = np.isin(distinct.indices.fill_null(-1).to_numpy(), list(wrong))
    values.refuse(flat, bad, refused, "a number, a date or a time such as 2024-01-31T12:00:00")
    return result


def _seconds(numbers: pa.Array) -> np.ndarray:
    return _scaled(numbers.to_numpy(zero_copy_only=False).astype(np.float64))


def _scaled(numbers: object) -> np.ndarray:
    found = np.array(numbers, np.float64)
    size = np.abs(np.nan_to_num(found))
    return found / np.select([size >= 1e17, size >= 1e14, size >= 1e11], [1e9, 1e6, 1e3], 1.0)


def _number(word: str) -> float | None:
    try:
        return pa.scalar(word).cast(pa.float64()).as_py()
    except pa.ArrowInvalid:
        return None
