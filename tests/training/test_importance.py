"""Tests of permutation importance on models whose answers are known."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.training.importance import importances

_ROWS = 3000


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ClickFiles:
    """Rows whose label follows from ``key`` alone, with a bag of one to three ids and two dense features."""
    generator = torch.Generator().manual_seed(0)
    key = torch.randint(1, 4, (_ROWS,), generator=generator)
    bags = [torch.arange(1, 2 + row % 3).tolist() for row in range(_ROWS)]
    columns = {
        "label": (key == 2).long().numpy(),
        "size": torch.rand(_ROWS, generator=generator).numpy(),
        "age": torch.rand(_ROWS, generator=generator).numpy(),
        "key": key.numpy(),
        "bag": bags,
    }
    file = tmp_path_factory.mktemp("importance") / "rows.parquet"
    pq.write_table(pa.table(columns), file)
    sparse = SparseFeature("key", num_embeddings=8), SparseFeature("bag", num_embeddings=8, multi_hot=True)
    return ClickFiles.open(file, Schema("label", (DenseFeature("size"), DenseFeature("age")), sparse, 4))


def test_only_what_a_model_reads_is_important(files: ClickFiles):
    def predict(batch):
        key = batch.sparse_features["key"].values()
        return torch.where(key == 2, 3.0, -3.0) + 0.1 * batch.dense_features[:, 1]

    found = {one.name: one for one in importances(predict, files, batch_size=700)}
    assert set(found) == {"size", "age", "key", "bag"}
    assert found["size"].loss == found["bag"].loss == 0 and found["size"].error == 0
    assert abs(found["age"].loss) < 0.01
    # A third of the rows are clicks: 4 of 9 rows get the other kind of key, and lose 3 on average instead of 0.05.
    assert found["key"].loss == pytest.approx(4 / 9 * 3, rel=0.1)
    assert 0 < found["key"].error < 0.1
    assert importances(predict, files)[-1].name == "key"


def test_a_feature_that_misleads_is_below_zero_and_a_bag_keeps_its_ids(files: ClickFiles):
    seen = []

    def predict(batch):
        bag = batch.sparse_features["bag"]
        seen.append(list(zip(bag.lengths().tolist(), bag.values()[bag.offsets()[1:] - 1].tolist(), strict=True)))
        return torch.where(batch.sparse_features["key"].values() == 2, -3.0, 3.0)

    found = importances(predict, files, rows=1000, batch_size=1000, seed=4)
    assert found[0].name == "key" and found[0].loss == pytest.approx(-4 / 9 * 3, rel=0.1)
    # A bag of n ids ends with the id n, whichever row it is dealt to.
    assert all(length == last for rows in seen for length, last in rows)
    assert [len(rows) for rows in seen] == [1000] * 5


def test_predictions_that_are_no_numbers_are_refused(files: ClickFiles):
    with pytest.raises(ValueError, match="importance: a prediction is not a number"):
        importances(lambda batch: batch.labels / 0, files)


def test_a_split_without_rows_is_refused(files: ClickFiles, tmp_path: Path):
    file = tmp_path / "none.parquet"
    pq.write_table(pq.read_table(files.files[0]).slice(0, 0), file)
    with pytest.raises(ValueError, match="importance: the split has no rows"):
        importances(lambda batch: batch.labels, ClickFiles.open(file, files.schema))
