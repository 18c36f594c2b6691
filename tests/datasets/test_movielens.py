from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from nasrec_torchrec.datasets import movielens
from nasrec_torchrec.datasets.prepared import load_split


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Made-up files in the layout of MovieLens-100K."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "raw"
    folder.mkdir()
    users = ["user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token"]
    users += [f"{u}\t{20 + u}\t{'MF'[u % 2]}\tjob{u % 3}\t{10000 + 1000 * u}" for u in range(1, 21)]
    items = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
    items += [f'{i}\t"Film" {i}\t{1960 + i if i != 7 else ""}\tDrama{" War" if i % 2 else ""}' for i in range(1, 31)]
    ratings = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for number in range(300):
        u, i, rating = rng.integers(1, 21), rng.integers(1, 31), rng.integers(1, 6)
        ratings.append(f"{u}\t{i}\t{rating}\t{880_000_000 + 3600 * ((number * 7) % 300)}")
    for name, lines in (("user", users), ("item", items), ("inter", ratings)):
        (folder / f"ml-100k.{name}").write_text("\n".join(lines) + "\n")
    return folder


def test_ratings_become_clicks_split_by_time(source: Path, tmp_path: Path):
    schema = movielens.prepare(tmp_path / "data", source)
    raw = [line.split("\t") for line in (source / "ml-100k.inter").read_text().splitlines()[1:]]
    kept = sorted((row for row in raw if row[2] != "3"), key=lambda row: int(row[3]))
    splits = {name: pq.read_table(tmp_path / "data" / f"{name}.parquet") for name in ("train", "validation", "test")}
    labels = [label for table in splits.values() for label in table["label"].to_pylist()]
    assert labels == [int(float(row[2]) > 3) for row in kept]
    assert splits["train"].num_rows == len(kept) * 8 // 10
    hours = np.array([int(row[3]) for row in kept]).astype("datetime64[s]").astype(object)
    feature = [h for table in splits.values() for h in table["hour"].to_pylist()]
    known = sorted({time.hour for time in hours[: splits["train"].num_rows]})
    assert feature == [known.index(t.hour) + 1 if t.hour in known else 0 for t in hours]
    weekdays = [d for table in splits.values() for d in table["weekday"].to_pylist()]
    known = sorted({time.weekday() for time in hours[: splits["train"].num_rows]})
    assert weekdays == [known.index(t.weekday()) + 1 if t.weekday() in known else 0 for t in hours]
    data = load_split(tmp_path / "data", "train")
    genres = [len(ids) for ids in data.sparse["genres"].to_dense()]
    assert genres == [1 + int(row[1]) % 2 for row in kept[: len(data)]]
    assert data.dense.mean(0).abs().max() < 1e-5
    assert not data.sparse["user"].values().any(), "users of fewer ratings than MIN_COUNT share id 0"
    items = [row[1] for row in kept[: len(data)]]
    rare = [items.count(item) < movielens.MIN_COUNT["item"] for item in items]
    assert (data.sparse["item"].values() == 0).tolist() == rare
    assert schema.feature_names == list(data.sparse.keys())


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
