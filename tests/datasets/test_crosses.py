from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nasrec_torchrec.datasets import transform
from nasrec_torchrec.datasets.config import SplitConfig
from nasrec_torchrec.datasets.crosses import add_crosses, cross_of
from nasrec_torchrec.datasets.preparation import RawData, prepare
from nasrec_torchrec.datasets.prepared import DICTIONARIES, load_schema, open_split
from nasrec_torchrec.datasets.schema import Schema, SparseFeature

_CROSSES = (
    cross_of(("user", "item")),
    SparseFeature("hashed", 50, "hash", cross=("user", "item")),
    cross_of(("user", "item", "shop"), largest=12),
)
_SCHEMA = Schema(
    "clicked",
    (),
    (SparseFeature("user", ids="dictionary"), SparseFeature("item", ids="dictionary"), SparseFeature("shop", 5)),
)


def _raw(folder: Path, schema: Schema) -> RawData:
    rng = np.random.default_rng(0)
    files = []
    for name, rows in (("train", 300), ("validation", 80), ("test", 80)):
        table = {
            "clicked": rng.integers(0, 2, rows),
            "user": [f"u{n}" if n else None for n in rng.integers(0, 12, rows)],
            "item": [f"i{n}" for n in rng.integers(0, 9, rows)],
            "shop": rng.integers(0, 5, rows),
        }
        files.append(str(folder / f"{name}.parquet"))
        pq.write_table(pa.table(table), files[-1])
    return RawData(tuple(files), schema, split=SplitConfig("given"))


def test_crosses_of_raw_and_of_prepared_data_are_the_same(tmp_path: Path):
    """Whether the schema has them from the start or they are added later, in training and in scoring."""
    plain = _raw(tmp_path, _SCHEMA)
    prepare(plain, tmp_path / "plain")
    later = add_crosses(tmp_path / "plain", tmp_path / "later", _CROSSES)
    whole = Schema("clicked", (), (*_SCHEMA.sparse, *_CROSSES))
    first = prepare(_raw(tmp_path, whole), tmp_path / "first")
    assert later == first == load_schema(tmp_path / "later")
    for split in ("train", "validation", "test"):
        mine, theirs = (open_split(tmp_path / name, split).load() for name in ("later", "first"))
        assert mine.sparse.to_dict().keys() == theirs.sparse.to_dict().keys()
        assert mine.sparse.values().equal(theirs.sparse.values()) and mine.labels.equal(theirs.labels)
    dictionaries = {
        file.stem: pq.read_table(file).column(0).combine_chunks()
        for file in (tmp_path / "later" / DICTIONARIES).iterdir()
    }
    raw = pq.read_table(tmp_path / "test.parquet")
    parsed, rejects = transform.parse(raw, later)
    online = transform.finish(parsed, later, dictionaries)
    offline = pq.read_table(tmp_path / "later" / "test")
    assert not rejects and all(
        online.column(name).to_pylist() == offline.column(name).to_pylist() for name in later.columns
    )


def test_a_combination_is_known_by_the_training_split_alone(tmp_path: Path):
    prepare(_raw(tmp_path, _SCHEMA), tmp_path / "plain")
    schema = add_crosses(tmp_path / "plain", tmp_path / "out", _CROSSES)
    train, test = (pq.read_table(tmp_path / "out" / split) for split in ("train", "test"))
    pairs = set(zip(train["user"].to_pylist(), train["item"].to_pylist(), strict=True))
    columns = (train[name].to_pylist() for name in ("user", "item", "user_x_item"))
    ids = {(user, item): cross for user, item, cross in zip(*columns, strict=True)}
    assert len(set(ids.values())) == len(pairs) == schema.sparse[3].num_embeddings - 2
    seen = 0
    for user, item, cross in zip(*(test[name].to_pylist() for name in ("user", "item", "user_x_item")), strict=True):
        assert cross == ids.get((user, item), 1)
        seen += (user, item) in pairs
    assert 0 < seen < test.num_rows
    assert schema.sparse[5].num_embeddings == 12 == len(set(train["user_x_item_x_shop"].to_pylist())) + 1
    assert add_crosses(tmp_path / "plain", tmp_path / "out", _CROSSES) == schema
    with pytest.raises(ValueError, match=r"holds another data set than .* with the crosses \['hashed'\]"):
        add_crosses(tmp_path / "plain", tmp_path / "out", _CROSSES[1:2])


@pytest.mark.parametrize(
    ("cross", "message"),
    [
        (("user",), "cross: expected two or more different features, found \\['user'\\]"),
        (("user", "user"), "two or more different"),
        (("user", "tags"), "that have one value a row and are no crosses themselves .* found \\['tags'\\]"),
        (("user", "item_x_user"), "found \\['item_x_user'\\]"),
    ],
)
def test_what_cannot_be_crossed_is_refused(cross: tuple[str, ...], message: str):
    tags = SparseFeature("tags", 9, multi_hot=True)
    with pytest.raises(ValueError, match=message):
        Schema("clicked", (), (*_SCHEMA.sparse, tags, cross_of(("item", "user")), cross_of(cross)))


def test_a_cross_has_no_id_of_its_own():
    with pytest.raises(ValueError, match=r"cross: expected ids hash or dictionary .* found ids modulo"):
        SparseFeature("pair", 9, "modulo", cross=("user", "item"))


def test_a_schema_with_a_cross_reads_back():
    schema = Schema("clicked", (), (*_SCHEMA.sparse, _CROSSES[1]))
    assert Schema.from_json(schema.to_json()) == schema
    assert schema.raw_columns == ["clicked", "user", "item", "shop"] and "cross" not in _SCHEMA.to_json()
