import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import click_table, make_click_data, make_schema

from nasrec_torchrec.datasets.click_data import ClickData, join
from nasrec_torchrec.datasets.features import SparseFeature
from nasrec_torchrec.datasets.schema import Schema

SCHEMA = Schema("y", ("d",), (SparseFeature("a", 5), SparseFeature("b", 7, multi_hot=True)), embedding_dim=8)
LARGE = SparseFeature("a", 2**40)


def _table(**replaced: pa.Array) -> pa.Table:
    columns = {
        "y": pa.array([0, 1, 1], pa.int8()),
        "d": pa.array([0.5, -1.0, 2.0]),
        "a": pa.array([0, 4, 2], pa.int32()),
        "b": pa.array([[1, 6], [], [3]], pa.list_(pa.int64())),
    }
    return pa.table(columns | replaced)


def _bags(ids: object) -> list[list[int]]:
    return [bag.tolist() for bag in ids.to_dense()]


def test_rows_become_feature_major_batches():
    data = ClickData.from_table(_table(), SCHEMA, "here")
    assert data.labels.tolist() == [0, 1, 1] and data.dense.tolist() == [[0.5], [-1.0], [2.0]]
    batch = data.select(torch.tensor([2, 0]))
    assert batch.sparse_features["a"].to_dense()[0].tolist() == [2]
    assert _bags(batch.sparse_features["b"]) == [[3], [1, 6]]
    assert batch.labels.tolist() == [1, 0]


def test_ids_above_32_bits_stay_exact():
    table = _table(a=pa.array([2**40 - 1, 0, 2**31]))
    data = ClickData.from_table(table, Schema("y", (), (LARGE,)), "here")
    assert data.select(torch.tensor([0, 2])).sparse_features.values().tolist() == [2**40 - 1, 2**31]


@given(st.integers(1, 30), st.integers(0, 3), st.sampled_from(["one id", "bags", "weighted"]))
def test_joined_rows_are_the_selected_rows_in_any_order(rows: int, seed: int, kind: str):
    schema = make_schema(weighted=kind == "weighted")
    if kind == "one id":
        schema = Schema("label", schema.dense, schema.sparse[:-1])
    table = click_table(
        make_click_data(make_schema(weighted=kind == "weighted"), rows, seed), make_schema(weighted=kind == "weighted")
    )
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    shuffled = ClickData.from_table(table, schema, "here", order.numpy())
    plain = ClickData.from_table(table, schema, "here")
    cut = rows // 2
    joined = join([(shuffled, cut, rows), (plain, 0, cut), (shuffled, 0, cut)])
    expected = plain.select(torch.cat([order[cut:], torch.arange(cut), order[:cut]]))
    assert torch.equal(joined.labels, expected.labels) and torch.equal(joined.dense_features, expected.dense_features)
    found, wanted = joined.sparse_features, expected.sparse_features
    assert found.keys() == wanted.keys() and found.values().dtype == torch.int64
    assert torch.equal(found.values(), wanted.values()) and torch.equal(found.lengths(), wanted.lengths())
    if kind == "weighted":
        assert torch.equal(found.weights(), wanted.weights())


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"y": pa.array([0, 1, 2])}, "here: column 'y': expected 0 or 1, found 2 in row 2"),
        ({"y": pa.array([0, 1, None])}, "column 'y': 1 values are missing"),
        ({"d": pa.array([0.0, float("nan"), 1.0])}, "column 'd': expected finite numbers, found nan in row 1"),
        ({"d": pa.array([1e38, 1e38, float("-inf")], pa.float32())}, "column 'd': .* found -inf in row 2"),
        ({"d": pa.array(["x", "y", "z"])}, "column 'd': expected numbers, found string"),
        ({"a": pa.array([0, 5, 2])}, r"column 'a': row 1: id 5 is outside of 0..4"),
        ({"a": pa.array([0, 1, -2])}, r"column 'a': row 2: id -2 is outside of 0..4"),
        ({"a": pa.array([0, 1, 2**32])}, r"column 'a': row 2: id 4294967296 is outside of 0..4"),
        ({"a": pa.array([0.5, 1.0, 2.0])}, "column 'a': expected integers, found double"),
        ({"a": pa.array([[1], [2], [3]])}, "column 'a': expected one id a row, found list"),
        ({"b": pa.array([1, 2, 3])}, "column 'b': expected lists of ids, found int64"),
        ({"b": pa.array([[1], [], [2, 7]])}, r"column 'b': row 2: id 7 is outside of 0..6"),
        ({"b": pa.array([[1], [], [2, None]])}, "column 'b': 1 values are missing"),
    ],
)
def test_bad_columns_are_one_clear_error(replaced, message: str):
    for order in (None, torch.tensor([2, 0, 1]).numpy()):
        with pytest.raises(ValueError, match=message):
            ClickData.from_table(_table(**replaced), SCHEMA, "here", order)


def test_weights_must_match_their_ids():
    schema = Schema("y", (), (SparseFeature("b", 7, multi_hot=True, weighted=True),))
    weights = pa.array([[0.5, 1.5], [], [2.0]], pa.list_(pa.float32()))
    data = ClickData.from_table(_table(b_weights=weights), schema, "here")
    assert data.select(torch.tensor([2, 0])).sparse_features.weights().tolist() == [2.0, 0.5, 1.5]
    for wrong in ([[0.5], [], [2.0]], [[0.5, float("inf")], [], [2.0]]):
        with pytest.raises(ValueError, match="'b_weights': expected"):
            ClickData.from_table(_table(b_weights=pa.array(wrong, pa.list_(pa.float32()))), schema, "here")
