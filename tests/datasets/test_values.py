"""One value has one text, however it was stored."""

import datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasrec_torchrec.datasets import values

_INTEGERS = [
    *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
    *(pa.float32(), pa.float64(), pa.decimal128(20, 0), pa.decimal128(20, 4), pa.decimal256(40, 9)),
]


def _texts(array: pa.Array) -> tuple[list[str | None], dict[int, str]]:
    refused: values.Rejects = {}
    return values.text(values.plain(array), refused).to_pylist(), refused


def _stored(array: pa.Array) -> list[pa.Array | pa.ChunkedArray]:
    """The same values, stored in other ways."""
    chunks = pa.chunked_array([array.slice(0, 1), array.slice(1)])
    return [array, chunks, array.dictionary_encode(), pc.run_end_encode(array)]


@given(st.lists(st.none() | st.integers(0, 127), min_size=2, max_size=6), st.sampled_from(_INTEGERS))
def test_a_whole_number_is_one_text_in_every_type(numbers, kind):
    expected = [None if number is None else str(number) for number in numbers]
    made = [None if n is None else Decimal(n) if pa.types.is_decimal(kind) else n for n in numbers]
    for array in _stored(pa.array(made, kind)):
        assert _texts(array) == (expected, {})
    halves = pa.array([None if n is None else np.float16(n) for n in numbers], pa.float16())
    assert _texts(halves) == (expected, {})


@given(st.lists(st.none() | st.text(max_size=5), min_size=2, max_size=6))
def test_text_stays_as_it_is(words):
    array = pa.array(words, pa.string())
    for kind in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.string_view(), pa.binary_view()):
        assert _texts(array.cast(kind)) == (words, {})
    assert _texts(array.dictionary_encode()) == (words, {})


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([True, False, None]), ["true", "false", None]),
        (pa.array([float("nan"), -0.0, 1e10]), [None, "0", "10000000000"]),
        (pa.array([Decimal("5.00"), Decimal("0E-8")], pa.decimal128(20, 8)), ["5", "0"]),
        (pa.array([datetime.date(2024, 1, 31)], pa.date64()), ["2024-01-31"]),
        (pa.array([datetime.datetime(2024, 1, 31, 12)], pa.timestamp("ns")), ["2024-01-31 12:00:00"]),
        (pa.array([1_500_000], pa.timestamp("us")), ["1970-01-01 00:00:01.5"]),
        (pa.array([0], pa.timestamp("ms", "Europe/Berlin")), ["1970-01-01 00:00:00Z"]),
        (pa.array([datetime.time(1, 2, 3)]), ["01:02:03"]),
        (pa.array([None, None]), [None, None]),
    ],
)
def test_other_types(array, expected):
    assert _texts(array) == (expected, {})


@pytest.mark.parametrize(
    "array",
    [
        pa.array([0.5]),
        pa.array([2.0**53]),
        pa.array([2.0**24], pa.float32()),
        pa.array([np.float16(2048)], pa.float16()),
        pa.array([float("inf")]),
        pa.array([Decimal("0.50")]),
    ],
)
def test_numbers_without_a_text_of_their_own_reject_their_row(array):
    found, refused = _texts(array)
    assert found == [None] and "expected a whole number" in refused[0]


def test_types_without_text_are_refused():
    with pytest.raises(ValueError, match=r"expected text, numbers, dates or times, found struct<a: int64>"):
        _texts(pa.array([{"a": 1}]))


@pytest.mark.parametrize("word", ["5", " 5", "5 ", "+5", "005", "5.", "5.0", "5.000"])
def test_text_of_a_whole_number_where_the_schema_says_integers(word):
    refused: values.Rejects = {}
    assert values.whole(pa.array([word, "-0", "", None]), refused, "an integer").to_pylist() == ["5", "0", None, None]
    assert not refused


@pytest.mark.parametrize("word", ["5.5", "5e3", "0x5", "five", "5 5", "--5", "5,0"])
def test_other_text_is_no_whole_number(word):
    refused: values.Rejects = {}
    assert values.whole(pa.array([word]), refused, "an integer").to_pylist() == [None]
    assert refused == {0: f"expected an integer, found {word!r}"}


@pytest.mark.parametrize(
    "array",
    [
        pa.array([datetime.datetime(2024, 1, 31, 12, 0, 0, 500_000)]),
        pa.array([datetime.datetime(2024, 1, 31, 12, 0, 0, 500_000)], pa.timestamp("ns", "UTC")),
        pa.array(["2024-01-31T12:00:00.5"]),
        pa.array(["2024-01-31 14:00:00.500+02:00"]),
        pa.array(["2024-01-31 12:00:00.5Z"]),
        pa.array([1706702400.5]),
        pa.array(["1706702400.5"]),
    ],
)
def test_moments_are_seconds(array):
    refused: values.Rejects = {}
    assert values.times(array, refused).to_pylist() == [1706702400.5] and not refused


def test_list_views_keep_their_values():
    view = pa.array([[1, 2], None, [3, 4]], pa.list_view(pa.int64()))
    assert values.plain(view).to_pylist() == [[1, 2], None, [3, 4]]
