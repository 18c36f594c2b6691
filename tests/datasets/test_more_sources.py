"""Sources besides text with delimiters and Parquet: JSON lines, Arrow files, folders, and queries."""

import gzip
import json
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from support import run_program

from nasrec_torchrec import datasets
from nasrec_torchrec.datasets.config import PreparationConfig, SplitConfig, SplitFlags, TextFormat
from nasrec_torchrec.datasets.json_lines import read_objects
from nasrec_torchrec.datasets.preparation import RawData, prepare
from nasrec_torchrec.datasets.prepared import read_manifest
from nasrec_torchrec.datasets.queries import queried
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.datasets.sources import Piece, find, inspect

SCHEMA = """
label: clicked
embedding_dim: 8
dense: [price]
sparse:
  - {name: shop, ids: dictionary}
  - {name: tags, ids: dictionary, multi_hot: true}
"""
ROWS: list[dict[str, Any]] = [
    {
        "clicked": row % 3 // 2,
        "price": None if row % 7 == 0 else row / 4,
        "shop": f"shop {row % 5}" if row % 11 else None,
        "tags": ["a", "b", "c"][: row % 4],
    }
    for row in range(240)
]


def _prepared(source: object, folder: Path, **options: Any) -> dict[str, Any]:
    """All prepared rows by column, in order."""
    schema = folder / "schema.yaml"
    schema.write_text(SCHEMA)
    datasets.prepare(str(source), schema, folder / "data", split=SplitFlags("time"), **options)
    parts = [pq.read_table(folder / "data" / split) for split in ("train", "validation", "test")]
    return pa.concat_tables([part.select(["clicked", "price", "shop", "tags"]) for part in parts]).to_pydict()


@pytest.fixture
def expected(tmp_path: Path) -> dict[str, Any]:
    """The rows as they are prepared from Parquet."""
    place = tmp_path / "expected"
    place.mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS), place / "log.parquet")
    return _prepared(place / "log.parquet", place)


def _json(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps({key: value for key, value in row.items() if value is not None}) + "\n" for row in rows)


@pytest.mark.parametrize("kind", ["json", "json in gzip", "feather", "ipc stream", "a saved data set"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, expected: dict[str, Any], kind: str):
    table = pa.Table.from_pylist(ROWS)
    source = tmp_path / "log"
    match kind:
        case "json":
            source.write_text(_json(ROWS))
        case "json in gzip":
            source.write_bytes(gzip.compress(_json(ROWS).encode()))
        case "feather":
            feather.write_feather(table, source, chunksize=70)
        case "ipc stream":
            with pa.ipc.new_stream(source, table.schema) as writer:
                writer.write_table(table, max_chunksize=50)
        case "a saved data set":  # by Hugging Face's datasets.Dataset.save_to_disk
            source.mkdir()
            (source / "state.json").write_text('{\n  "_data_files": []\n}')
            for number, part in enumerate((table.slice(0, 150), table.slice(150))):
                with pa.ipc.new_stream(source / f"data-{number:05d}-of-00002.arrow", part.schema) as writer:
                    writer.write_table(part)
    assert _prepared(source, tmp_path) == expected


@pytest.mark.parametrize("kind", ["json", "parquet", "categories in parquet", "feather"])
def test_a_text_that_marks_a_missing_value_does_so_in_every_kind_of_file(
    tmp_path: Path, expected: dict[str, Any], kind: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys.modules[__name__], "SCHEMA", SCHEMA + "text: {missing: ['', NA, '-']}\n")
    rows = [
        row | {"price": "-" if row["price"] is None else str(row["price"]), "shop": row["shop"] or "NA"} for row in ROWS
    ]
    table, source = pa.Table.from_pylist(rows), tmp_path / "log"
    match kind:
        case "json":
            source.write_text(_json(rows))
        case "feather":
            feather.write_feather(table, source)
        case _:
            place = table.column_names.index("shop")
            if "categories" in kind:
                table = table.set_column(place, "shop", table.column("shop").dictionary_encode())
            pq.write_table(table, source)
    assert _prepared(source, tmp_path) == expected
    # A request to a server of the model means the same.
    schema = Schema.from_json((tmp_path / "data" / "schema.json").read_text())
    assert schema.text.missing == ("", "NA", "-")


def test_init_finds_the_marks_of_missing_values_in_parquet_too(tmp_path: Path):
    rows = [row | {"shop": row["shop"] or "N/A", "price": row["price"] or 1.0} for row in ROWS * 5]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "log.parquet")
    words = ["--source", tmp_path / "log.parquet", "--label", "clicked", "--out", tmp_path / "schema.yaml"]
    done = run_program("nasrec", "prepare", "init", *words)
    assert done.returncode == 0 and Schema.read(tmp_path / "schema.yaml").text.missing == ("", "N/A"), done.stderr
    datasets.prepare(str(tmp_path / "log.parquet"), tmp_path / "schema.yaml", tmp_path / "data")
    schema = Schema.from_json((tmp_path / "data" / "schema.json").read_text())
    (shop,) = (feature for feature in schema.sparse if feature.name == "shop")
    assert shop.missing == pytest.approx(1 / 11, abs=0.02)


def test_init_proposes_a_schema_for_json_lines(tmp_path: Path):
    rows = [row | {"time": 1_700_000_000 + 3600 * number} for number, row in enumerate(ROWS * 5)]
    (tmp_path / "log.jsonl").write_text(_json(rows))
    words = ["--source", tmp_path / "log.jsonl", "--label", "clicked", "--out", tmp_path / "schema.yaml"]
    done = run_program("nasrec", "prepare", "init", *words)
    assert done.returncode == 0, done.stderr
    found = Schema.read(tmp_path / "schema.yaml")
    assert [feature.name for feature in found.dense] == ["price"]
    assert {feature.name for feature in found.sparse if feature.multi_hot} == {"tags"}
    assert found.split is not None and found.split.split_column == "time"
    datasets.prepare(str(tmp_path / "log.jsonl"), tmp_path / "schema.yaml", tmp_path / "data")
    assert read_manifest(tmp_path / "data")["rejected"] == 0


def test_lines_that_are_no_objects_are_rejected_with_their_numbers(tmp_path: Path):
    lines = _json(ROWS).splitlines()
    lines[3], lines[9] = '{"clicked": 1, "price": ', "[1, 2]"
    lines[5] = ""
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"2 of 239 rows were rejected.*line 4: expected a JSON object, found"):
        _prepared(tmp_path / "log.jsonl", tmp_path, config=PreparationConfig(max_rejects=0.0))
    _prepared(tmp_path / "log.jsonl", tmp_path)
    found = [json.loads(line) for line in (tmp_path / "data" / "rejects.jsonl").read_text().splitlines()]
    assert [reject["line"] for reject in found] == [4, 10] and "found '[1, 2]'" in found[1]["reason"]


def test_values_of_several_kinds_have_one_text():
    objects = [{"id": 5, "n": 1}, {"id": "x"}, {"id": 5.5, "n": 2.5}, {"id": True}, {"id": 2**70}, {"id": "NA"}]
    data = "".join(json.dumps(entry) + "\n" for entry in objects).encode()
    table, numbers, rejects = read_objects(Piece(data, 0, 1, 0), ["id", "n"], TextFormat(missing=("", "NA")))
    assert table["id"].to_pylist() == ["5", "x", "5.5", "true", str(2**70), None]
    assert table["n"].to_pylist() == [1.0, None, 2.5, None, None, None]
    assert numbers.tolist() == [1, 2, 3, 4, 5, 6] and not rejects


def test_folders_of_dates_are_one_source_with_their_date_as_a_column(tmp_path: Path):
    for day in range(1, 11):
        part = tmp_path / "logs" / f"dt=2026-11-{day:02d}" / "country=a%20b"
        part.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(ROWS[day * 20 : day * 20 + 20]), part / "part-0.parquet")
    (tmp_path / "logs" / "_SUCCESS").touch()
    (tmp_path / "logs" / "dt=2026-11-01" / ".part.crc").touch()
    assert len(find([str(tmp_path / "logs")])) == len(find([str(tmp_path / "logs" / "dt=*")])) == 10
    schema = tmp_path / "schema.yaml"
    done = run_program(
        "nasrec", "prepare", "init", "--source", tmp_path / "logs", "--label", "clicked", "--out", schema
    )
    assert done.returncode == 0 and "country" in done.stdout, done.stderr
    schema.write_text(SCHEMA + "  - {name: country, ids: dictionary}\n  - {name: day, ids: weekday, of: dt}\n")
    words = ["--source", tmp_path / "logs", "--schema", schema, "--out", tmp_path / "data", "--split", "time"]
    done = run_program("nasrec", "prepare", "table", *words, "--split_column", "dt")
    assert done.returncode == 0, done.stderr
    # The last day is for test; the first of November 2026 is a Sunday.
    assert set(pq.read_table(tmp_path / "data" / "test")["day"].to_pylist()) == {2}
    assert set(pq.read_table(tmp_path / "data" / "train")["country"].to_pylist()) == {2}
    words = pq.read_table(tmp_path / "data" / "dictionaries" / "t_country.parquet").column("word").to_pylist()
    assert words == ["a b"]
    with pytest.raises(ValueError, match="the folder holds no file of data"):
        find([str(_empty(tmp_path))])


def _empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def test_text_in_folders_of_dates(tmp_path: Path):
    for day, gz in ((1, False), (2, True)):
        part = tmp_path / f"dt=2026-11-0{day}"
        part.mkdir()
        text = "clicked,price,shop,tags\n" + "".join(f"{n % 2},{n},s{n % 3},a|b\n" for n in range(50))
        (part / ("log.csv.gz" if gz else "log.csv")).write_bytes(gzip.compress(text.encode()) if gz else text.encode())
    proposed = datasets.propose(str(tmp_path / "dt=*"), label="clicked")
    assert "dt" in [choice.column.name for choice in proposed.choices]
    (tmp_path / "schema.yaml").write_text(SCHEMA + "  - {name: dt, ids: dictionary}\n")
    datasets.prepare(str(tmp_path / "dt=*"), tmp_path / "schema.yaml", tmp_path / "data")
    words = pq.read_table(tmp_path / "data" / "dictionaries" / "t_dt.parquet").column("word").to_pylist()
    assert sorted(words) == ["2026-11-01", "2026-11-02"]


def test_splits_are_given_by_folders_and_by_the_beginning_of_a_name(tmp_path: Path):
    table = pa.Table.from_pylist(ROWS)
    for name in ("train/data-0.arrow", "validation-00000-of-00001.arrow", "test/data-0.arrow"):
        (tmp_path / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        feather.write_feather(table.slice(len(name), 100), tmp_path / "raw" / name)
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    raw = RawData((str(tmp_path / "raw"),), Schema.read(tmp_path / "schema.yaml"), split=SplitConfig("given"))
    prepare(raw, tmp_path / "data")
    splits = read_manifest(tmp_path / "data")["splits"]
    assert [split["rows"] for split in splits.values()] == [100, 100, 100]


def test_kinds_that_cannot_be_read_are_named(tmp_path: Path):
    (tmp_path / "array.json").write_text('[{"clicked": 1}, {"clicked": 0}]')
    with pytest.raises(ValueError, match="a JSON array: write one object a line"):
        inspect(str(tmp_path / "array.json"))
    feather.write_feather(pa.table({"a": [1, 2, 3]}), tmp_path / "log.feather")
    content = (tmp_path / "log.feather").read_bytes()
    (tmp_path / "log.feather").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"log\.feather: cannot be read"):
        _prepared(tmp_path / "log.feather", tmp_path)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "b.parquet")
    (tmp_path / "c.csv").write_text("a\n1\n")
    with pytest.raises(ValueError, match="expected files of one kind, found parquet and text"):
        datasets.propose([str(tmp_path / "b.parquet"), str(tmp_path / "c.csv")], label="a")


def test_a_log_and_its_side_table_are_joined_by_a_query(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("duckdb")
    monkeypatch.chdir(tmp_path)
    lines = "".join(f"{n % 3 // 2},{n},{n % 4}\n" for n in range(300))
    (tmp_path / "log.csv").write_text("clicked,price,item\n" + lines)
    pq.write_table(pa.table({"item": range(4), "brand": ["a", "b", "c", None]}), tmp_path / "items.parquet")
    query = "SELECT log.*, brand FROM 'log.csv' AS log LEFT JOIN 'items.parquet' USING (item) ORDER BY price"
    words = ["--source", "duckdb", "--query", query]
    done = run_program("nasrec", "prepare", "init", *words, "--label", "clicked", "--out", "schema.yaml")
    assert done.returncode == 0 and "brand" in done.stdout and "--query 'SELECT log" in done.stdout.replace('"', "'")
    assert "brand" in Schema.read(tmp_path / "schema.yaml").feature_names
    done = run_program("nasrec", "prepare", "table", *words, "--schema", "schema.yaml", "--out", "data")
    assert done.returncode == 0, done.stderr
    assert sum(split["rows"] for split in json.loads(done.stdout)["splits"].values()) == 300
    again = run_program("nasrec", "prepare", "table", *words, "--schema", "schema.yaml", "--out", "data")
    assert "data is up to date" in again.stderr
    for wrong, message in (
        (["--source", "duckdb", "--query", "SELECT nothing FROM nowhere"], "error: query: "),
        (["--source", "absent.duckdb", "--query", "SELECT 1"], "found no file at 'absent.duckdb'"),
        (["--source", "mysql://u:secret@h/d", "--query", "SELECT 1"], "expected a URI that begins with one of"),
    ):
        done = run_program("nasrec", "prepare", "table", *wrong, "--schema", "schema.yaml", "--out", "other")
        assert done.returncode == 2 and message in done.stderr and "secret" not in done.stderr, done.stderr


def test_a_query_of_a_database(tmp_path: Path, expected: dict[str, Any]):
    pytest.importorskip("adbc_driver_sqlite")
    database = sqlite3.connect(tmp_path / "log.db")
    database.execute("CREATE TABLE log (n INTEGER, clicked INTEGER, price REAL, shop TEXT, tags TEXT)")
    rows = [(n, r["clicked"], r["price"], r["shop"], "|".join(r["tags"])) for n, r in enumerate(ROWS)]
    database.executemany("INSERT INTO log VALUES (?, ?, ?, ?, ?)", rows)
    database.commit()
    database.close()
    source = f"sqlite:///{tmp_path / 'log.db'}"
    found = _prepared(source, tmp_path, query="SELECT clicked, price, shop, tags FROM log ORDER BY n")
    assert found == expected


@pytest.fixture
def click_log(postgresql: str) -> Iterator[str]:
    """The rows in a table of a PostgreSQL server, with columns of types that Arrow does not have."""
    dbapi = pytest.importorskip("adbc_driver_postgresql.dbapi")
    source = f"postgresql://{postgresql.replace('@', ':secret@')}"
    columns = (
        *("n serial", "clicked boolean", "price numeric(10, 2)", "shop char(9)", "tags text[]", "who uuid"),
        *("wait interval", "facts jsonb", "kind numeric(12)", "big numeric(30)", "any_number numeric"),
    )
    with dbapi.connect(source) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE clicks ({', '.join(columns)})")
        for row in ROWS:
            price, shop = ("NULL" if row[name] is None else f"'{row[name]}'" for name in ("price", "shop"))
            tags = ", ".join(f"'{tag}'" for tag in row["tags"])
            cursor.execute(
                f"INSERT INTO clicks (clicked, price, shop, tags) VALUES ({row['clicked']}::boolean, {price}, {shop}, "
                f"ARRAY[{tags}]::text[])"
            )
        cursor.execute(
            "UPDATE clicks SET who = '94700b6b-cfbc-420f-adc1-8d57925bec59', wait = '1 day 2 seconds', big = 1e20, "
            """facts = '{"x": 1}', kind = 7, any_number = .5"""
        )
        connection.commit()
        yield source
        cursor.execute("DROP TABLE clicks")
        connection.commit()


@pytest.mark.slow
def test_a_query_of_postgresql(tmp_path: Path, click_log: str, expected: dict[str, Any]):
    # A semicolon and a comment at its end are as good as in psql.
    assert _prepared(click_log, tmp_path, query="SELECT * FROM clicks ORDER BY n -- all rows\n;") == expected
    with queried(click_log, "SELECT who, wait, facts, kind, big, any_number FROM clicks LIMIT 1") as file:
        (row,) = pq.read_table(file).to_pylist()
    assert row == {
        "who": "94700b6b-cfbc-420f-adc1-8d57925bec59",
        "wait": 86_402.0,
        "facts": '{"x": 1}',
        "kind": 7,
        "big": "100000000000000000000",
        "any_number": 0.5,
    }
    with pytest.raises(ValueError, match=r"query: .*relation \"nowhere\" does not exist") as found:
        _prepared(click_log, tmp_path, query="SELECT * FROM nowhere")
    assert "secret" not in str(found.value)
    datasets.propose(click_log, tmp_path / "proposed.yaml", label="clicked", query="SELECT * FROM clicks")
    assert "price" in Schema.read(tmp_path / "proposed.yaml").columns
    for file in [tmp_path / "proposed.yaml", *(tmp_path / "data").rglob("*.json")]:
        assert "secret" not in file.read_text()


def test_a_library_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(ValueError, match=r"query: needs duckdb, .*pip install 'nasrec-torchrec\[sql\]'"):
        _prepared("duckdb", tmp_path, query="SELECT 1")
