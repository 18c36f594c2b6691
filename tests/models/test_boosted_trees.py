"""Trees as tensors give what LightGBM gives, alone and in a package."""

from dataclasses import replace
from pathlib import Path

import lightgbm
import numpy as np
import pytest
import torch
from support import prepare_pairs
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from nasrec_torchrec.datasets.crosses import add_crosses, history_of
from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.datasets.prepared import load_schema, open_split
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.models.boosted_trees import BoostedTrees, columns_of_trees
from nasrec_torchrec.models.stored_trees import load_trees
from nasrec_torchrec.search.race.tree import predict_tree, train_tree

_ROWS, _CATEGORIES = 4000, 60


def _trained(schema: Schema, rows: np.ndarray, rounds: int) -> lightgbm.Booster:
    rng = np.random.default_rng(1)
    odds = np.sin(3 * rows[:, 0]) + (rows[:, 2].astype(int) % 7 == 3) - 0.5 * (rows[:, 3] > 20)
    labels = rng.random(len(rows)) < 1 / (1 + np.exp(-odds))
    columns, categories = columns_of_trees(schema)
    dataset = lightgbm.Dataset(rows, labels, feature_name=columns, categorical_feature=categories)
    return lightgbm.train({"objective": "binary", "verbosity": -1, "num_threads": 1}, dataset, rounds)


@pytest.fixture(scope="module")
def numbers() -> tuple[Schema, np.ndarray]:
    dense = (DenseFeature("x"), DenseFeature("y"))
    sparse = tuple(SparseFeature(name, _CATEGORIES) for name in ("shop", "hour"))
    rng = np.random.default_rng(0)
    rows = [*rng.standard_normal((2, _ROWS)).astype(np.float32), *rng.integers(0, _CATEGORIES, (2, _ROWS))]
    return Schema("clicked", dense, sparse, 8), np.stack(rows, 1)


@pytest.mark.parametrize("rounds", (1, 40, 300))
def test_trees_of_numbers_and_categories_give_what_lightgbm_gives(numbers, rounds: int):
    schema, rows = numbers
    booster = _trained(schema, rows, rounds)
    trees = BoostedTrees(schema, booster.dump_model()["tree_info"])
    assert any(tree["num_cat"] for tree in booster.dump_model()["tree_info"])
    ids = torch.tensor(rows[:, 2:].T.astype(np.int64))
    sparse = KeyedJaggedTensor(["shop", "hour"], ids.flatten(), lengths=torch.ones(2 * _ROWS, dtype=torch.int64))
    found = trees(torch.tensor(rows[:, :2], dtype=torch.float32), sparse).flatten()
    torch.testing.assert_close(found, torch.tensor(booster.predict(rows, raw_score=True)).float(), rtol=1e-5, atol=1e-6)


def test_ids_that_no_table_has_and_missing_ones_count_as_the_missing_id(numbers):
    schema, rows = numbers
    trees = BoostedTrees(schema, _trained(schema, rows, 40).dump_model()["tree_info"])
    dense = torch.zeros(3, 2)
    ids, lengths = torch.tensor([-1, _CATEGORIES, 5, 6, 7]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    known = torch.tensor([0, 0, 0, 5, 6, 7]), torch.ones(2, 3, dtype=torch.int64)
    torch.testing.assert_close(trees.logits(dense, ids, lengths), trees.logits(dense, *known))
    with pytest.raises(ValueError, match=r"trees: expected the features \['shop', 'hour'\], found \['hour', 'shop'\]"):
        trees(dense, KeyedJaggedTensor(["hour", "shop"], known[0], lengths=known[1].flatten()))


def test_a_tree_of_a_single_leaf_is_a_constant(numbers):
    schema, rows = numbers
    dataset = lightgbm.Dataset(rows, np.arange(_ROWS) % 4 == 0, feature_name=columns_of_trees(schema)[0])
    booster = lightgbm.train({"objective": "binary", "verbosity": -1, "min_data_in_leaf": _ROWS}, dataset, 3)
    trees = BoostedTrees(schema, booster.dump_model()["tree_info"])
    ids, lengths = torch.tensor([1, 2]), torch.ones(2, 1, dtype=torch.int64)
    found = trees.logits(torch.zeros(1, 2), ids, lengths)
    assert float(found) == pytest.approx(float(booster.predict(rows[:1], raw_score=True)[0]), abs=1e-6)


def test_stored_trees_read_histories_as_their_counts(tmp_path: Path):
    add_crosses(prepare_pairs(tmp_path / "plain", 2000), tmp_path / "data", [history_of(("user", "item"))])
    data = tmp_path / "data"
    schema = load_schema(data)
    train_tree(data, schema, tmp_path / "tree", None)
    files = replace(open_split(data, "validation"), schema=schema)
    expected, _, _ = predict_tree(tmp_path / "tree", files)
    trees = load_trees(tmp_path / "tree")
    parts = [trees(batch.dense_features, batch.sparse_features) for batch in files.evaluation_batches(100)]
    torch.testing.assert_close(torch.cat(parts).flatten(), expected, rtol=1e-5, atol=1e-6)
    (tmp_path / "tree" / "model.txt").write_text("another one")
    with pytest.raises(ValueError, match=r"model\.txt: damaged, its checksum is another one than when it was written"):
        load_trees(tmp_path / "tree")
