from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import make_click_data, make_schema

from nasrec_torchrec.datasets.click_data import ClickData
from nasrec_torchrec.datasets.prepared import load_schema, load_split, write_prepared
from nasrec_torchrec.datasets.schema import Schema, SparseFeature

SCHEMA = Schema("y", ("d",), (SparseFeature("a", 5), SparseFeature("b", 7, multi_hot=True)), embedding_dim=8)


def _table(**replaced: pa.Array) -> pa.Table:
    columns = {
        "y": pa.array([0, 1, 1], pa.int8()),
        "d": pa.array([0.5, -1.0, 2.0]),
        "a": pa.array([0, 4, 2], pa.int32()),
        "b": pa.array([[1, 6], [], [3]], pa.list_(pa.int64())),
    }
    return pa.table(columns | replaced)


def _write(folder: Path, table: pa.Table) -> Path:
    file = folder / "part.parquet"
    pq.write_table(table, file)
    return file


def test_parquet_becomes_feature_major_batches(tmp_path: Path):
    data = ClickData.from_parquet(_write(tmp_path, _table()), SCHEMA)
    assert data.labels.tolist() == [0, 1, 1] and data.dense.tolist() == [[0.5], [-1.0], [2.0]]
    batch = data.select(torch.tensor([2, 0]))
    assert batch.sparse_features["a"].to_dense()[0].tolist() == [2]
    assert [ids.tolist() for ids in batch.sparse_features["b"].to_dense()] == [[3], [1, 6]]
    assert batch.labels.tolist() == [1, 0]


def test_a_folder_of_files_is_read_in_order(tmp_path: Path):
    pq.write_table(_table().slice(0, 1), tmp_path / "0.parquet")
    pq.write_table(_table().slice(1), tmp_path / "1.parquet")
    data = ClickData.from_parquet(tmp_path, SCHEMA)
    assert data.sparse["a"].values().tolist() == [0, 4, 2]
    assert [ids.tolist() for ids in data.sparse["b"].to_dense()] == [[1, 6], [], [3]]


def test_weights_are_read_beside_their_ids(tmp_path: Path):
    schema = Schema("y", (), (SparseFeature("b", 7, multi_hot=True, weighted=True),))
    weights = pa.array([[0.5, 1.5], [], [2.0]], pa.list_(pa.float32()))
    data = ClickData.from_parquet(_write(tmp_path, _table(b_weights=weights)), schema)
    assert data.select(torch.tensor([2, 0])).sparse_features.weights().tolist() == [2.0, 0.5, 1.5]
    short = pa.array([[0.5], [], [2.0]], pa.list_(pa.float32()))
    with pytest.raises(ValueError, match="'b_weights': expected as many weights as ids"):
        ClickData.from_parquet(_write(tmp_path, _table(b_weights=short)), schema)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"y": pa.array([0, 1, 2])}, "column 'y': expected 0 or 1, found 2.0 in row 2"),
        ({"y": pa.array([0, 1, None])}, "column 'y': 1 values are missing"),
        ({"d": pa.array([0.0, float("nan"), 1.0])}, "column 'd': expected finite numbers, found nan in row 1"),
        ({"d": pa.array(["x", "y", "z"])}, "column 'd': expected numbers, found string"),
        ({"a": pa.array([0, 5, 2])}, r"column 'a': row 1: id 5 is outside of 0..4"),
        ({"a": pa.array([0, 1, -2])}, r"column 'a': row 2: id -2 is outside of 0..4"),
        ({"a": pa.array([0.5, 1.0, 2.0])}, "column 'a': expected integers, found double"),
        ({"a": pa.array([[1], [2], [3]])}, "column 'a': expected one id a row, found list"),
        ({"b": pa.array([1, 2, 3])}, "column 'b': expected lists of ids, found int64"),
        ({"b": pa.array([[1], [], [2, 7]])}, r"column 'b': row 2: id 7 is outside of 0..6"),
    ],
)
def test_bad_columns_are_one_clear_error(tmp_path: Path, replaced, message: str):
    with pytest.raises(ValueError, match=message):
        ClickData.from_parquet(_write(tmp_path, _table(**replaced)), SCHEMA)


def test_bad_files_are_one_clear_error(tmp_path: Path):
    file = _write(tmp_path, _table())
    with pytest.raises(ValueError, match=r"missing columns \['b'\]"):
        ClickData.from_parquet(_write(tmp_path, _table().drop(["b"])), SCHEMA)
    _write(tmp_path, _table())
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"part.parquet: not a readable Parquet file"):
        ClickData.from_parquet(file, SCHEMA)
    with pytest.raises(ValueError, match="no Parquet file found"):
        ClickData.from_parquet(tmp_path / "absent.parquet", SCHEMA)


def test_a_failed_preparation_leaves_the_old_data_set_and_nothing_else(tmp_path: Path):
    folder = tmp_path / "data"
    splits = dict.fromkeys(("train", "validation", "test"), _table())
    write_prepared(folder, SCHEMA, splits, "first")
    with pytest.raises(KeyError):
        write_prepared(folder, SCHEMA, {"train": _table()}, "second")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert load_schema(folder) == SCHEMA and len(load_split(folder, "test")) == 3
    with pytest.raises(ValueError, match="split: expected one of"):
        load_split(folder, "tests")


@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 9), st.booleans())
def test_evaluation_counts_every_row_once_on_any_number_of_ranks(rows, world_size, batch_size, weighted):
    data = make_click_data(make_schema(weighted=weighted), rows)
    shares = [
        torch.cat([batch.dense_features[:, 0] for batch in data.evaluation_batches(batch_size, rank, world_size)])
        for rank in range(world_size)
    ]
    assert len({share.numel() for share in shares}) == 1, "every rank must take equally many steps"
    assert torch.equal(data.restore(torch.cat(shares), world_size), data.dense[:, 0])


@given(st.integers(12, 60), st.sampled_from([1, 2, 3]), st.integers(0, 3))
def test_global_training_batches_do_not_depend_on_the_number_of_ranks(rows, world_size, epoch):
    data = make_click_data(make_schema(), rows)
    alone = list(data.training_batches(6, 0, epoch))
    shared = [list(data.training_batches(6, 0, epoch, rank, world_size)) for rank in range(world_size)]
    assert len(alone) == rows // 6
    for step, whole in enumerate(alone):
        parts = [shared[rank][step] for rank in range(world_size)]
        assert torch.equal(whole.dense_features, torch.cat([part.dense_features for part in parts]))
        for name in whole.sparse_features.keys():
            bags = [ids.tolist() for part in parts for ids in part.sparse_features[name].to_dense()]
            assert bags == [ids.tolist() for ids in whole.sparse_features[name].to_dense()]
    seen = torch.cat([batch.dense_features[:, 0] for batch in alone])
    assert len(set(seen.tolist())) == len(seen), "a row was seen twice in an epoch"


def test_epochs_are_shuffled_differently():
    data = make_click_data(make_schema(), 60)
    first, second = (next(data.training_batches(60, 0, epoch)).dense_features for epoch in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(first.sort(0).values, second.sort(0).values)


def test_schema_round_trips():
    for schema in (SCHEMA, make_schema(weighted=True), make_schema(num_dense=0)):
        assert Schema.from_json(schema.to_json()) == schema


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a JSON document"),
        ("[]", "expected an object"),
        ('{"label": "y"}', "expected the keys"),
        ('{"label": "y", "dense": [], "sparse": [{"name": "a"}]}', "sparse feature 'a': expected the keys"),
        ('{"label": "y", "dense": [], "sparse": []}', "at least one feature"),
        ('{"label": "y", "dense": ["y"], "sparse": [{"name": "a", "num_embeddings": 3}]}', r"more than once: \['y'\]"),
        ('{"label": "y", "dense": [], "sparse": [{"name": "a", "num_embeddings": 0}]}', "positive integer, found 0"),
    ],
)
def test_bad_schemas_are_refused(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        Schema.from_json(text)


def test_tables_start_xavier_normal():
    config = make_schema(rows=4000).tables()[0]
    table = torch.empty(4000, 16)
    config.init_fn(table)
    assert float(table.std()) == pytest.approx(float(np.sqrt(2 / 4016)), rel=0.02)
