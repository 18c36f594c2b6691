"""Hours, weekdays and ages that are computed from moments."""

from datetime import date, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nasrec_torchrec import datasets
from nasrec_torchrec.datasets import transform
from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.datasets.moments import moments, name_of
from nasrec_torchrec.datasets.prepared import load_schema
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.inference.rows import RowReader

SCHEMA = Schema(
    "clicked",
    (DenseFeature("account_days", age_of="joined", at="time"),),
    (SparseFeature("hour", ids="hour", of="time"), SparseFeature("weekday", ids="weekday", of="time")),
    embedding_dim=8,
)
# A Wednesday.
MOMENT = datetime(2024, 1, 31, 22, 30, tzinfo=timezone.utc)
SECONDS = int(MOMENT.timestamp())


@pytest.mark.parametrize(
    "column",
    [
        pa.array([MOMENT]),
        pa.array([MOMENT.replace(tzinfo=None)]),
        pa.array([MOMENT.astimezone(timezone(timedelta(hours=9)))], pa.timestamp("us", "Asia/Tokyo")),
        pa.array([SECONDS]),
        pa.array([SECONDS * 1000]),
        pa.array([float(SECONDS) * 1e6]),
        pa.array([SECONDS * 10**9]),
        pa.array([str(SECONDS)]),
        pa.array([str(SECONDS * 1000), "2024-01-31"]),
        pa.array(["2024-01-31T22:30:00Z"]),
        pa.array(["2024-01-31 22:30:00.000000"]),
        pa.array(["2024-02-01T07:30:00+09:00", str(SECONDS * 1000)]),
    ],
    ids=lambda column: str(column.type),
)
def test_a_moment_is_the_same_however_it_is_stored(column: pa.Array):
    refused: dict[int, str] = {}
    assert moments(column, refused)[0].as_py() == SECONDS and not refused
    rows = pa.table({"clicked": [1] * len(column), "time": column, "joined": [date(2024, 1, 30)] * len(column)})
    parsed, rejects = transform.parse(rows, SCHEMA)
    first = parsed.slice(0, 1).to_pydict()
    assert not rejects and first["hour"] == [23] and first["weekday"] == [3]
    assert first["account_days"] == [pytest.approx(1 + 22.5 / 24)]


def test_ids_count_from_midnight_and_from_monday():
    days = [datetime(2024, 1, 29, tzinfo=timezone.utc) + timedelta(days=day, hours=day) for day in range(7)]
    rows = pa.table({"clicked": [0] * 7, "time": days, "joined": pa.nulls(7)})
    parsed, _ = transform.parse(rows, SCHEMA)
    assert parsed["weekday"].to_pylist() == [1, 2, 3, 4, 5, 6, 7] == parsed["hour"].to_pylist()
    assert np.isnan(parsed["account_days"].to_numpy()).all()
    assert [name_of("weekday", number) for number in (1, 7)] == ["Monday", "Sunday"] and name_of("hour", 24) == "23:00"
    early = datetime(1969, 12, 31, 23, tzinfo=timezone.utc)
    parsed, _ = transform.parse(pa.table({"clicked": [0], "time": [early], "joined": [None]}), SCHEMA)
    assert (parsed["hour"].to_pylist(), parsed["weekday"].to_pylist()) == ([24], [3])


def test_what_is_no_moment_is_rejected_and_a_missing_one_is_missing():
    rows = pa.table({"clicked": [0] * 4, "time": ["2024-01-31", "noon", None, "1e9"], "joined": ["", "", "", "soon"]})
    parsed, rejects = transform.parse(rows, SCHEMA)
    assert parsed["hour"].to_pylist() == [1, 0] and parsed["weekday"].to_pylist() == [3, 0]
    assert "column 'time': expected a number, a date or a time" in rejects[1] and "found 'noon'" in rejects[1]
    assert "column 'joined'" in rejects[3]


def test_a_schema_keeps_them_and_serving_reads_the_same(tmp_path: Path):
    start = datetime(2024, 1, 1, tzinfo=timezone.utc)
    times = [start + timedelta(hours=5 * row) for row in range(200)]
    table = {"clicked": [row % 3 == 0 for row in range(200)], "time": times}
    table["joined"] = [start - timedelta(days=row % 9) if row % 7 else None for row in range(200)]
    pq.write_table(pa.table(table), tmp_path / "log.parquet")
    (tmp_path / "schema.json").write_text(SCHEMA.to_json())
    assert Schema.from_json(SCHEMA.to_json()) == SCHEMA
    datasets.prepare(str(tmp_path / "log.parquet"), tmp_path / "schema.json", tmp_path / "data")
    schema = load_schema(tmp_path / "data")
    assert schema.raw_columns == ["clicked", "joined", "time"]
    assert [config.num_embeddings for config in schema.tables()] == [25, 8]
    described = str(datasets.describe(tmp_path / "data", top=8)[0])
    assert ":00 " in described and "Wednesday" in described
    prepared = pq.read_table(tmp_path / "data" / "test").to_pydict()
    assert set(prepared["hour"]) <= set(range(1, 25)) and set(prepared["weekday"]) <= set(range(1, 8))
    reader = RowReader(schema, {})
    row = {"time": times[9], "joined": "2023-12-30T00:00:00Z"}
    for same in (row, row | {"time": times[9].isoformat()}, row | {"time": times[9].timestamp()}):
        request = reader.read([same]).request
        assert request.ids.tolist() == [22, 2] and request.dense is not None
        assert request.dense.tolist() == [[pytest.approx(2 + 45 / 24)]]
    # A caller may say once what holds for all rows.
    found = reader.read([{"joined": "2023-12-30"}, {"joined": None}], {"time": times[9].isoformat()}).request
    assert found.ids.tolist() == [22, 22, 2, 2] and found.dense is not None
    assert found.dense.tolist() == [[pytest.approx(2 + 45 / 24)], [0.0]]
    with pytest.raises(ValueError, match="shared: column 'time': expected a number, a date or a time"):
        reader.read([{"joined": None}], {"time": "noon"})
    with pytest.raises(ValueError, match="row 1: column 'time': expected a number, a date or a time"):
        reader.read([row, {"time": "noon"}])


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (lambda: SparseFeature("h", ids="hour"), "h: of: expected the column with the moment"),
        (lambda: SparseFeature("h", 9, ids="hash", of="time"), "h: of: expected the column with the moment"),
        (lambda: SparseFeature("h", 30, ids="hour", of="time"), "h: ids hour: expected 25 ids"),
        (lambda: SparseFeature("h", ids="weekday", of="time", multi_hot=True), "h: ids weekday: expected 8 ids"),
        (lambda: DenseFeature("age", age_of="born"), "age: age_of and at: expected both columns or none"),
    ],
)
def test_a_wrong_feature_is_refused(feature, message: str):
    with pytest.raises(ValueError, match=message):
        feature()
