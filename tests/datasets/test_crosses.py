import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nasrec_torchrec.datasets import history, transform
from nasrec_torchrec.datasets.buckets import buckets_of
from nasrec_torchrec.datasets.config import PreparationConfig, SplitConfig
from nasrec_torchrec.datasets.crosses import add_crosses, cross_of, history_of
from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.datasets.preparation import RawData, prepare
from nasrec_torchrec.datasets.prepared import load_schema, open_split, write_rows
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.datasets.words import DICTIONARIES, read_dictionary

_CROSSES = (
    cross_of(("user", "item")),
    SparseFeature("hashed", 50, "hash", cross=("user", "item")),
    buckets_of("price"),
    SparseFeature("few", 6, "buckets", cross=("weight",)),
    cross_of(("user", "item", "shop"), largest=12),
)
_SCHEMA = Schema(
    "clicked",
    (DenseFeature("price", "log1p"), DenseFeature("weight", "standardize")),
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
            "price": [None if n < 1 else max(0.0, n - 6) for n in rng.gamma(2.0, 3.0, rows)],
            "weight": rng.normal(70, 9, rows),
        }
        files.append(str(folder / f"{name}.parquet"))
        pq.write_table(pa.table(table), files[-1])
    return RawData(tuple(files), schema, split=SplitConfig("given"))


def test_crosses_of_raw_and_of_prepared_data_are_the_same(tmp_path: Path):
    """Whether the schema has them from the start or they are added later, in training and in scoring."""
    plain = _raw(tmp_path, _SCHEMA)
    prepare(plain, tmp_path / "plain")
    later = add_crosses(tmp_path / "plain", tmp_path / "later", _CROSSES)
    whole = replace(_SCHEMA, sparse=(*_SCHEMA.sparse, *_CROSSES))
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
    online, _ = transform.finish(parsed, later, dictionaries)
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
    assert schema.sparse[7].num_embeddings == 12 == len(set(train["user_x_item_x_shop"].to_pylist())) + 1
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
    with pytest.raises(ValueError, match=r"cross: expected ids hash, .* or buckets and .* found ids modulo"):
        SparseFeature("pair", 9, "modulo", cross=("user", "item"))


def test_a_schema_with_a_cross_reads_back():
    schema = Schema("clicked", (), (*_SCHEMA.sparse, _CROSSES[1]))
    assert Schema.from_json(schema.to_json()) == schema
    assert schema.raw_columns == ["clicked", "user", "item", "shop"] and "cross" not in _SCHEMA.to_json()


def test_a_history_counts_the_training_rows_and_never_the_own_label(tmp_path: Path):
    plain = tmp_path / "plain"
    prepare(_raw(tmp_path, _SCHEMA), plain, PreparationConfig(piece_mib=1))
    pair, alone = history_of(("user", "item")), history_of(("shop",))
    schema = add_crosses(plain, tmp_path / "out", [pair, alone])
    assert Schema.from_json(schema.to_json()) == schema
    train = pq.read_table(tmp_path / "out" / "train").to_pylist()
    counts: dict[tuple[int, int], list[int]] = {}
    for row in train:
        counts.setdefault((row["user"], row["item"]), [0, 0])[row["clicked"]] += 1
    for split in ("validation", "test"):
        for row in pq.read_table(tmp_path / "out" / split).to_pylist():
            others, clicks = counts.get((row["user"], row["item"]), (0, 0))
            assert row[pair.name] == history.bucket(np.array([clicks]), np.array([others]))[0]
    # The rows of a combination, in whatever order they were drawn, saw 0, 1, 2, ... rows, one after another.
    exact = {key: seen for key, seen in counts.items() if sum(seen) <= 5}  # larger counts share buckets
    assert len(exact) > 50
    for key, (others, clicks) in exact.items():
        mine = [(row[pair.name], row["clicked"]) for row in train if (row["user"], row["item"]) == key]
        steps, seen = {(0, 0): 0}, []
        for identity, clicked in sorted(mine, key=lambda row: sum(divmod(row[0] - 1, 12))):
            before = divmod(identity - 1, 12)
            assert before in steps and sum(before) == len(seen)
            steps = {(before[0] + clicked, before[1] + 1 - clicked): 0}
            seen.append(identity)
        assert len(seen) == others + clicks
    # Drawn again it is the same, and what is scored online is what lies in the files.
    again = add_crosses(plain, tmp_path / "again", [pair, alone])
    assert again == schema and pq.read_table(tmp_path / "again" / "train").equals(
        pq.read_table(tmp_path / "out" / "train")
    )
    dictionaries = {f.stem: read_dictionary(f) for f in (tmp_path / "out" / DICTIONARIES).iterdir()}
    parsed, _ = transform.parse(pq.read_table(tmp_path / "test.parquet"), schema)
    online, _ = transform.finish(parsed, schema, dictionaries)
    offline = pq.read_table(tmp_path / "out" / "test")
    for name in (pair.name, alone.name):
        assert online.column(name).to_pylist() == offline.column(name).to_pylist()


def _timed(folder: Path, column: str | None) -> list[dict[str, int]]:
    """Prepares and crosses rows whose last two lie in the later splits; returns the training rows in their order."""
    rows = {
        "clicked": [1, 0, 1, 1, 0, 1, 0, 1, 0, 1],
        "shop": [1, 1, 2, 1, 1, 1, 2, 2, 1, 1],
        "second": [50, 10, 30, 20, 20, 40, 35, 5, 90, 91],
    }
    pq.write_table(pa.table(rows), folder / "rows.parquet")
    schema = Schema("clicked", (), (SparseFeature("shop", 5),))
    raw = RawData((str(folder / "rows.parquet"),), schema, split=SplitConfig("time", column))
    prepare(raw, folder / "plain")
    add_crosses(folder / "plain", folder / "out", [history_of(("shop",))])
    return pq.read_table(folder / "out" / "train").to_pylist()


def test_a_history_of_data_split_by_time_counts_earlier_rows_alone(tmp_path: Path):
    train = _timed(tmp_path, "second")
    assert [row["clicked"] for row in train] == [1, 0, 1, 1, 0, 1, 0, 1]
    # Shop 1 by seconds: 10 without a click, 20 one of each, which do not count for each other, 40 and 50.
    seen = [(2, 2), (0, 0), (1, 0), (0, 1), (0, 1), (1, 2), (2, 0), (0, 0)]  # clicks, others
    assert [divmod(row["history_of_shop"] - 1, 12) for row in train] == seen
    for split in ("validation", "test"):  # and what is scored counts all of them
        (row,) = pq.read_table(tmp_path / "out" / split).to_pylist()
        assert divmod(row["history_of_shop"] - 1, 12) == (3, 2)


def test_rows_without_a_column_of_times_are_in_the_order_of_time(tmp_path: Path):
    seen = [(0, 0), (1, 0), (0, 0), (1, 1), (2, 1), (2, 2), (1, 0), (1, 1)]
    assert [divmod(row["history_of_shop"] - 1, 12) for row in _timed(tmp_path, None)] == seen


def test_times_that_an_earlier_version_did_not_keep_are_missed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The rows are then in a shuffled order, which the order of the file does not change."""
    _timed(tmp_path, "second")
    file = tmp_path / "plain" / "train" / "part-000000.parquet"
    manifest = json.loads((tmp_path / "plain" / "manifest.json").read_text())
    rows = pq.read_table(file).drop_columns("//time")
    manifest["splits"]["train"]["files"] = [write_rows(file, rows, load_schema(tmp_path / "plain"))]
    (tmp_path / "plain" / "manifest.json").write_text(json.dumps(manifest))
    capsys.readouterr()
    add_crosses(tmp_path / "plain", tmp_path / "again", [history_of(("shop",))])
    assert "without the times of its rows" in capsys.readouterr().err


def test_histories_are_added_to_prepared_data_alone(tmp_path: Path):
    with pytest.raises(ValueError, match=r"histories are added to prepared data .* found .*history_of_shop"):
        prepare(_raw(tmp_path, Schema("clicked", (), (*_SCHEMA.sparse, history_of(("shop",))))), tmp_path / "out")


def test_buckets_follow_the_training_rows(tmp_path: Path):
    prepare(_raw(tmp_path, _SCHEMA), tmp_path / "plain")
    schema = add_crosses(tmp_path / "plain", tmp_path / "out", _CROSSES)
    price, few = (next(f for f in schema.sparse if f.name == name) for name in ("price_buckets", "few"))
    train = pq.read_table(tmp_path / "out" / "train")
    prices = train.column("price").to_numpy()
    assert np.mean(prices == 0) > 0.5  # so that 0 has a bucket of its own
    assert price.edges[0] == prices[prices > 0].min() and len(price.edges) <= 64
    found = train.column("price_buckets").to_numpy()
    assert (found[prices == 0] == 1).all() and (found[prices > 0] > 1).all()
    assert (np.diff(found[np.argsort(prices)]) >= 0).all()
    assert len(few.edges) == 4
    counts = np.bincount(train.column("few").to_numpy())[1:]
    assert counts.min() > 0.15 * len(prices)
    # A data set that has buckets can have further features.
    pair = SparseFeature("pair", ids="dictionary", cross=("user", "shop"))
    further = add_crosses(tmp_path / "out", tmp_path / "further", [pair])
    assert [feature.name for feature in further.crosses] == [*(cross.name for cross in _CROSSES), "pair"]
    assert (
        pq.read_table(tmp_path / "further" / "test")
        .drop_columns(["pair"])
        .equals(pq.read_table(tmp_path / "out" / "test").select(pq.read_table(tmp_path / "out" / "test").column_names))
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            "ids: buckets, cross: [shop]",
            r"expected a dense feature of the schema \(\['price'\]\), found 'shop'",
        ),
        ("ids: buckets", "wide: cross: buckets are those of one dense feature, found"),
        ("ids: buckets, cross: [price], edges: [1, 1]", "wide: edges: expected increasing numbers"),
        ("ids: buckets, cross: [price], edges: [.nan]", "wide: edges: expected a list of finite numbers"),
        ("ids: buckets, cross: [price], num_embeddings: 3, edges: [1, 2]", "at most two fewer than num_embeddings"),
        ("ids: dictionary, edges: [1, 2]", "wide: edges: only buckets have them"),
        ("ids: buckets, cross: [price], table: t_shop", "buckets cannot share the table t_shop"),
    ],
)
def test_buckets_that_do_not_fit_are_refused(settings: str, message: str):
    text = f"{{label: y, dense: [price], sparse: [{{name: shop, num_embeddings: 5}}, {{name: wide, {settings}}}]}}"
    with pytest.raises(ValueError, match=message):
        Schema.from_json(text)
