import math

import numpy as np
import pyarrow as pa
import pytest

from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.datasets.ids import hash_text
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.datasets.transform import finish, parse


def _parse(values: list, feature: SparseFeature | DenseFeature, kind: pa.DataType | None = None):
    """The column that one raw column becomes, and the reasons of rejected rows."""
    other = SparseFeature("other", 3)
    dense = (feature,) if isinstance(feature, DenseFeature) else ()
    schema = Schema("y", dense, (other,) if dense else (feature,))
    raw = {"y": [0] * len(values), "other": [0] * len(values), feature.name: pa.array(values, kind)}
    table, rejects = parse(pa.table(raw), schema)
    if isinstance(feature, DenseFeature):  # where missing numbers get their value
        table, _ = finish(table, schema, {})
    return table.column(feature.name).to_pylist(), rejects


@pytest.mark.parametrize(
    ("feature", "values", "expected"),
    [
        (SparseFeature("x", 100, "hex"), ["0000000a", "ffffffff", None, ""], [11, (2**32 - 1) % 99 + 1, 0, 0]),
        (SparseFeature("x", 100, "hex"), ["63", "-1", "A0", "f" * 40], [1, 0, 160 % 99 + 1, (16**40 - 1) % 99 + 1]),
        (SparseFeature("x", 100, "modulo"), ["7", "-1", "0", "9" * 40, None], [8, 0, 1, (10**40 - 1) % 99 + 1, 0]),
        (SparseFeature("x", 100, "id"), ["0", "99", None], [0, 99, 0]),
        (SparseFeature("x", 50, "hash"), ["ü", "", None], [hash_text("ü".encode()) % 49 + 1, 0, 0]),
        (SparseFeature("x", ids="dictionary"), ["b", "", None, "a"], ["b", None, None, "a"]),
        (SparseFeature("x", 9, multi_hot=True), ["1|2", "", None, "3", "4||5"], [[1, 2], [], [], [3], [4, 0, 5]]),
        (DenseFeature("x"), ["1.5", "-2", None, "nan", "1e3"], [1.5, -2.0, 0.0, 0.0, 1000.0]),
        (DenseFeature("x", "log1p"), ["3", "-2", None, "1e300"], [math.log(4), 0.0, 0.0, math.log(1e300)]),
    ],
)
def test_rules(feature, values, expected):
    found, rejects = _parse(values, feature, pa.string())
    assert not rejects
    assert found == (pytest.approx(expected, rel=1e-6) if isinstance(feature, DenseFeature) else expected)
    assert _parse([None if v is None else v.encode() for v in values], feature, pa.binary())[0] == found


@pytest.mark.parametrize(
    ("feature", "value", "reason"),
    [
        (SparseFeature("x", 100, "hex"), "0000000g", "column 'x': expected hexadecimal digits, found '0000000g'"),
        (SparseFeature("x", 100, "hex"), "-2", "expected hexadecimal digits"),
        (SparseFeature("x", 100, "hex"), "1" * 5000, "expected hexadecimal digits, found '1111"),
        (SparseFeature("x", 100, "modulo"), "1.5", "expected an integer, -1 or more, found '1.5'"),
        (SparseFeature("x", 100, "modulo"), "0x10", "expected an integer"),
        (SparseFeature("x", 100, "id"), "100", "expected an id in 0..99, found '100'"),
        (SparseFeature("x", 100, "hash"), b"\xff", r"expected valid UTF-8, found '\\xff'"),
        (SparseFeature("x", ids="dictionary"), b"a\xff", "expected valid UTF-8"),
        (SparseFeature("x", 9, multi_hot=True), "1|9|2", "expected an id in 0..8, found '9'"),
        (DenseFeature("x"), "five", "expected a finite number, found 'five'"),
        (DenseFeature("x"), "inf", "expected a finite number, found 'inf'"),
        (DenseFeature("x"), "1e300", "expected a number that float32 can hold"),
        (DenseFeature("x", "log1p"), "1_0", "expected a finite number"),
    ],
)
def test_a_row_that_cannot_be_read_is_rejected_and_no_other(feature, value, reason):
    good = b"1"
    value = value if isinstance(value, bytes) else value.encode()
    found, rejects = _parse([good, value, good, None], feature, pa.binary())
    assert list(rejects) == [1] and reason in rejects[1]
    alone, _ = _parse([good, good, None], feature, pa.binary())
    assert found == alone, "a rejected value must not change how its neighbours are read"


@pytest.mark.parametrize(
    ("feature", "values", "expected", "rejected"),
    [
        (SparseFeature("x", 100, "modulo"), pa.array([5, -1, None, 2**40], pa.int64()), [6, 0, 0, 2**40 % 99 + 1], []),
        (SparseFeature("x", 100, "modulo"), pa.array([2**64 - 1], pa.uint64()), [(2**64 - 1) % 99 + 1], []),
        (SparseFeature("x", 100, "id"), pa.array([5.0, None, float("nan"), 1.5, 7.0]), [5, 0, 0, 7], [3]),
        (SparseFeature("x", 100, "hash"), pa.array([7, 7, None]), [hash_text(b"7") % 99 + 1] * 2 + [0], []),
        (SparseFeature("x", 9, multi_hot=True), pa.array([[1, 2], [], None, [9]]), [[1, 2], [], []], [3]),
        (SparseFeature("x", 9), pa.array(["1", "2"]).dictionary_encode(), [1, 2], []),
        (DenseFeature("x"), pa.array([True, False, None]), [1.0, 0.0, 0.0], []),
        (DenseFeature("x"), pa.array([2, 3]), [2.0, 3.0], []),
    ],
)
def test_typed_columns_of_parquet_files(feature, values, expected, rejected):
    found, rejects = _parse(values, feature)
    assert found == expected and list(rejects) == rejected


def test_types_that_never_fit_are_one_clear_error():
    with pytest.raises(ValueError, match=r"column 'x': expected lists, or text that '\|' separates, found int64"):
        _parse([1], SparseFeature("x", 9, multi_hot=True))
    with pytest.raises(ValueError, match="expected hexadecimal text, found int64"):
        _parse([1], SparseFeature("x", 9, "hex"))


def test_weights_keep_to_their_values():
    schema = Schema("y", (), (SparseFeature("x", 9, multi_hot=True, weighted=True),))
    raw = {"y": ["1", "0", "1", "0"], "x": ["1|2", "3", None, "4"], "x_weights": ["0.5|2", "1|1", None, "z"]}
    table, rejects = parse(pa.table(raw), schema)
    assert table.to_pydict() == {"y": [1, 1], "x": [[1, 2], []], "x_weights": [[0.5, 2.0], []]}
    assert rejects[1] == "column 'x_weights': expected one weight per value" and "found 'z'" in rejects[3]


@pytest.mark.parametrize(("above", "good"), [(None, [0, 1, 1]), (2.5, [0, 0, 1, 0])])
def test_labels(above, good):
    schema = Schema("y", (), (SparseFeature("x", 3),), label_above=above)
    values = ["0", "1", "1.0", None, "x"] if above is None else ["0", "2.5", "3", "-7", None, "x"]
    table, rejects = parse(pa.table({"y": values, "x": ["1"] * len(values)}), schema)
    assert table.column("y").to_pylist() == good
    assert sorted(rejects) == [len(good), len(good) + 1] and "label 'y': expected" in rejects[len(good)]


def test_finish_numbers_words_and_standardizes():
    schema = Schema(
        "y",
        (DenseFeature("d", "standardize", 2.0, 4.0),),
        (SparseFeature("x", 4, "dictionary"), SparseFeature("z", 4, "dictionary", multi_hot=True, table="t_x")),
    )
    raw = pa.table({"y": [0, 1, 0], "d": ["6", None, "2"], "x": ["b", "c", None], "z": [["a", "q"], [], ["b"]]})
    parsed, _ = parse(raw, schema)
    table, _ = finish(parsed, schema, {"t_x": pa.array(["a", "b"])})
    assert table.column("d").to_pylist() == [1.0, 0.0, 0.0]
    assert table.column("x").to_pylist() == [3, 1, 0]
    assert table.column("z").to_pylist() == [[2, 1], [], [3]]
    assert table.column("x").type == pa.int32() and np.dtype(table.column("d").to_numpy().dtype) == np.float32
