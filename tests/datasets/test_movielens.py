from datetime import datetime, timezone
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support import make_movielens

from nasrec_torchrec.datasets import movielens
from nasrec_torchrec.datasets.features import FIRST_WORD
from nasrec_torchrec.datasets.prepared import open_split
from nasrec_torchrec.datasets.splits import SPLITS


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_movielens(tmp_path / "raw")


def test_ratings_become_clicks_split_by_time(source: Path, tmp_path: Path):
    schema = movielens.prepare(tmp_path / "data", source)
    raw = [line.split("\t") for line in (source / "ml-100k.inter").read_text().splitlines()[1:]]
    kept = sorted((row for row in raw if row[2] != "3"), key=lambda row: int(row[3]))
    splits = {name: open_split(tmp_path / "data", name).load() for name in SPLITS}
    train = splits["train"]
    assert [len(data) for data in splits.values()] == [
        round(len(kept) * 0.8),
        round(len(kept) * 0.9) - round(len(kept) * 0.8),
        len(kept) - round(len(kept) * 0.9),
    ]
    # Within a split rows keep the order of the file.
    times = [int(row[3]) for row in kept]
    ends = {"train": times[len(train) - 1], "test": times[-len(splits["test"])]}
    rows = [row for row in raw if row[2] != "3" and int(row[3]) <= ends["train"]]
    assert train.labels.tolist() == [float(int(row[2]) > 3) for row in rows]
    genres = [len(ids) for ids in train.sparse["genres"].to_dense()]
    assert genres == [1 + int(row[1]) % 2 for row in rows]
    assert train.dense.mean(0).abs().max() < 1e-5
    assert abs(float(train.dense[:, 0].std(correction=0)) - 1) < 1e-5, "age is never missing"
    # Few ratings: every user is rarer than MIN_COUNT and gets the id of unknown ones.
    assert train.sparse["user"].values().unique().tolist() == [1]
    items = [row[1] for row in rows]
    rare = [items.count(item) < movielens.MIN_COUNT["item"] for item in items]
    assert train.sparse["item"].values().eq(1).tolist() == rare
    for name in ("train", "test"):
        chosen = [row for row in raw if row[2] != "3"]
        chosen = [row for row in chosen if (int(row[3]) >= ends["test"] if name == "test" else row in rows)]
        for feature, read in (("hour", lambda when: when.hour), ("weekday", lambda when: when.weekday())):
            words = pq.read_table(tmp_path / "data" / "dictionaries" / f"t_{feature}.parquet")["word"].to_pylist()
            values = [str(read(datetime.fromtimestamp(int(row[3]), timezone.utc))) for row in chosen]
            ids = [words.index(value) + FIRST_WORD if value in words else 1 for value in values]
            assert splits[name].sparse[feature].values().tolist() == ids
    assert schema.feature_names == list(train.sparse.keys())


@pytest.mark.parametrize("name", ["user", "item", "inter"])
def test_missing_and_damaged_files_are_one_clear_error(source: Path, tmp_path: Path, name: str):
    file = source / f"ml-100k.{name}"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:5]) + "\nonly one field\n")
    with pytest.raises(ValueError, match=f"ml-100k.{name}: cannot be read"):
        movielens.prepare(tmp_path / "data", source)
    file.unlink()
    with pytest.raises(ValueError, match=f"ml-100k.{name}: cannot be read"):
        movielens.prepare(tmp_path / "data", source)
    assert not (tmp_path / "data").exists()


def test_a_rating_of_an_unknown_user_is_refused(source: Path, tmp_path: Path):
    with (source / "ml-100k.inter").open("a") as file:
        file.write("999\t1\t5\t880000000\n")
    with pytest.raises(ValueError, match="names a user that does not exist"):
        movielens.prepare(tmp_path / "data", source)
