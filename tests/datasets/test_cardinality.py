"""Numbers of distinct values over all rows, where a sample cannot tell."""

import gzip
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest

from nasrec_torchrec import datasets
from nasrec_torchrec.datasets.cardinality import estimated_distinct
from nasrec_torchrec.datasets.config import TextFormat
from nasrec_torchrec.datasets.sources import find

ROWS = 60_000


@pytest.mark.parametrize("kind", ["csv", "semicolons", "gzip", "parquet"])
def test_all_rows_are_counted_and_not_the_sample(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("duckdb")
    # The sample sees the beginning and places of the rest: a value seldom more than once, though each occurs ten times.
    table = pa.table(
        {
            "clicked": [row % 2 for row in range(ROWS)],
            'it\'s "a" user': [f"u{row % 6000}" for row in range(ROWS)],
            "shop": [f"s{row % 7}" for row in range(ROWS)],
        }
    )
    file = tmp_path / "log.x"
    if kind == "parquet":
        pq.write_table(table, file, row_group_size=5000)
    else:
        pcsv.write_csv(table, file, pcsv.WriteOptions(delimiter=";" if kind == "semicolons" else ","))
        if kind == "gzip":
            file.write_bytes(gzip.compress(file.read_bytes()))
    text = None if kind == "parquet" else TextFormat(";" if kind == "semicolons" else ",")
    found = estimated_distinct(find([str(file)]), text, table.column_names[1:])
    assert found['it\'s "a" user'] == pytest.approx(6000, rel=0.1) and found["shop"] == 7
    proposal = datasets.propose(str(file), label="clicked", sample_rows=2000)
    user = next(choice for choice in proposal.choices if choice.column.name.endswith("user"))
    whole = kind == "gzip" or user.column.rows == ROWS
    assert whole or ("in all rows" in user.why) == (user.column.singles > 0.5 * user.column.distinct)
    monkeypatch.setitem(sys.modules, "duckdb", None)
    assert estimated_distinct(find([str(file)]), text, ["shop"]) == {}


def test_what_duckdb_does_not_read_is_left_to_the_sample(tmp_path: Path):
    (tmp_path / "log.jsonl").write_text('{"a": 1}\n')
    assert estimated_distinct(find([str(tmp_path / "log.jsonl")]), TextFormat(), ["a"]) == {}
