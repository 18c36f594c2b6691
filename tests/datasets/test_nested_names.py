"""Columns with dots in their names, and members of objects, which are read by such names."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from nasrec_torchrec import datasets
from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.datasets.prepared import load_schema
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.inference.rows import RowReader
from nasrec_torchrec.inference.scoring import read_dictionaries

ROWS = [
    {
        "clicked": row % 3 // 2,
        "user": {"id": f"u{row % 40}", "home": {"country": ["DE", "FR"][row % 2]}},
        "item": {"price": row % 50 / 4},
        "event": {"at": 1_700_000_000 + 3600 * row},
    }
    for row in range(600)
]
NAMES = ["user_id", "user_home_country", "item_price", "event_at"]


def _write(folder: Path, kind: str) -> Path:
    table = pa.Table.from_pylist(ROWS)
    match kind:
        case "json":
            (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        case "parquet":
            pq.write_table(table, folder / "log.parquet", row_group_size=250)
        case "feather":
            feather.write_feather(table, folder / "log.feather", chunksize=250)
        case "csv":
            head = "clicked,user.id,user.home.country,item.price,event.at\n"
            flat = [
                (r["clicked"], r["user"]["id"], r["user"]["home"]["country"], r["item"]["price"], r["event"]["at"])
                for r in ROWS
            ]
            (folder / "log.csv").write_text(head + "".join(",".join(map(str, row)) + "\n" for row in flat))
    (file,) = folder.glob("log.*")
    return file


@pytest.mark.parametrize("kind", ["json", "parquet", "feather", "csv"])
def test_nested_names_are_proposed_prepared_and_served(tmp_path: Path, kind: str):
    source, schema = _write(tmp_path, kind), tmp_path / "schema.yaml"
    datasets.propose(str(source), schema, label="clicked")
    proposed = Schema.read(schema)
    assert [(dense.name, dense.column) for dense in proposed.dense] == [("item_price", "item.price")]
    sparse = {feature.name: feature.column for feature in proposed.sparse if not feature.cross}
    assert sparse == {"user_id": "user.id", "user_home_country": "user.home.country"}
    assert proposed.split is not None and proposed.split.split_column == "event.at"
    schema.write_text(schema.read_text().replace("  # - ", "  - "))
    datasets.prepare(str(source), schema, tmp_path / "data")
    found = load_schema(tmp_path / "data")
    assert {feature.of for feature in found.sparse if feature.of} == {"event.at"}
    assert [config.name for config in found.tables()][:2] == ["t_user_id", "t_user_home_country"]
    prepared = pq.read_table(tmp_path / "data" / "test").to_pylist()[0]
    # The earliest of the latest tenth of the rows, by what a caller knows of it.
    reader = RowReader(found, read_dictionaries(tmp_path / "data", found))
    row = {name: value for name, value in ROWS[540].items() if name != "clicked"}
    flat = {"user.id": row["user"]["id"], "user.home.country": "DE", "item.price": row["item"]["price"]}
    for same, shared in (
        (row, {}),
        (flat | {"event": row["event"]}, {}),
        ({"user": row["user"]}, {"item": row["item"], "event.at": row["event"]["at"]}),
    ):
        request = reader.read([same], shared).request
        assert request.ids.tolist() == [prepared[feature.name] for feature in found.sparse]
        assert request.dense is not None and request.dense.tolist() == [[prepared["item_price"]]]


def test_a_column_has_a_name_of_its_own_where_it_is_not_computed():
    schema = Schema("y", (DenseFeature("a", column="b.c"),), (SparseFeature("d", 9, column="e f"),))
    assert schema.raw_columns == ["y", "b.c", "e f"] and schema.columns == ["y", "a", "d"]
    assert Schema.from_json(schema.to_json()) == schema
    assert '"column":' not in Schema("y", ("a",), (SparseFeature("d", 9),)).to_json()
    with pytest.raises(ValueError, match="h: column: a feature that is computed has none"):
        SparseFeature("h", ids="hour", of="time", column="x")
    with pytest.raises(ValueError, match="age: column: a number of days has none"):
        DenseFeature("age", age_of="born", at="time", column="x")
