"""Warnings about rows that are in two splits, and about dictionaries that say nothing."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nasrec_torchrec import datasets
from nasrec_torchrec.datasets.config import PreparationConfig
from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.datasets.prepared import data_warnings, open_split
from nasrec_torchrec.datasets.repeated import fingerprints
from nasrec_torchrec.datasets.schema import Schema

SCHEMA = Schema(
    "clicked",
    (DenseFeature("price"),),
    (SparseFeature("user", 99, ids="hash"), SparseFeature("tags", 9, ids="hash", multi_hot=True)),
    embedding_dim=8,
)


def _table(**changes: object) -> pa.Table:
    return pa.table({"clicked": [1], "price": [2.0], "user": [3], "tags": [[1, 2]]} | changes)


def test_only_equal_rows_have_equal_hashes():
    changed = [
        _table(clicked=[0]),
        _table(price=[3.0]),
        _table(user=[2]),
        _table(tags=[[2, 1]]),
        _table(tags=[[1]]),
        _table(tags=pa.array([[]], pa.list_(pa.int64()))),
        _table(tags=[[1, 2, 0]]),
        _table(price=[3.0], user=[2]),
    ]
    found = [int(fingerprints(table, SCHEMA)[0]) for table in [_table(), *changed]]
    assert len(set(found)) == len(found)
    assert fingerprints(_table(price=[0.0]), SCHEMA) == fingerprints(_table(price=[-0.0]), SCHEMA)
    both = pa.concat_tables([_table(), changed[5], _table()])
    first, other, again = fingerprints(both, SCHEMA).tolist()
    assert first == again == found[0] and other == found[6]


@pytest.mark.parametrize("times", [1, 2])
def test_rows_that_were_logged_twice_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], times: int):
    random = np.random.default_rng(0)
    table = pa.table(
        {
            "clicked": random.integers(0, 2, 3000),
            "price": random.random(3000),
            "user": random.integers(0, 90, 3000),
            "tags": [["a"][: row % 2] for row in range(3000)],
        }
    )
    pq.write_table(pa.concat_tables([table] * times), tmp_path / "log.parquet")
    (tmp_path / "schema.json").write_text(SCHEMA.to_json())
    config = PreparationConfig(piece_mib=1)
    datasets.prepare(str(tmp_path / "log.parquet"), tmp_path / "schema.json", tmp_path / "data", config=config)
    err = capsys.readouterr().err
    # Of two equal rows, one in eight tenths of the cases lies in the training rows.
    for split in ("validation", "test"):
        assert (f"warning: {split}: " in err and "rows are also training rows" in err) == (times == 2)
    if times == 2:
        (share,) = [int(line.split()[2].rstrip("%")) for line in err.splitlines() if "validation: " in line]
        assert 70 < share < 90


def test_a_dictionary_of_one_word_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = {
        "clicked": [row % 2 for row in range(300)],
        "country": ["DE"] * 300,
        "user": [str(row) for row in range(300)],
    }
    pq.write_table(pa.table(rows), tmp_path / "log.parquet")
    (tmp_path / "schema.yaml").write_text(
        "label: clicked\nembedding_dim: 8\nsparse:\n  - {name: country, ids: dictionary}\n"
        "  - {name: user, ids: dictionary, min_count: 2}\n"
    )
    datasets.prepare(str(tmp_path / "log.parquet"), tmp_path / "schema.yaml", tmp_path / "data")
    err = capsys.readouterr().err
    assert "'country': the dictionary holds one word" in err and "'user': the dictionary holds no word" in err
    # Reports say it again.
    assert [line.removeprefix("warning: ") for line in err.splitlines()][-3:] == data_warnings(tmp_path / "data")[-3:]
    assert list(open_split(tmp_path / "data", "train").warnings) == data_warnings(tmp_path / "data")
