"""What is measured on the training rows, where there is little to measure."""

import datetime
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nasrec_torchrec.datasets.config import SplitConfig
from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.datasets.preparation import RawData, prepare
from nasrec_torchrec.datasets.prepared import read_manifest
from nasrec_torchrec.datasets.schema import Schema

SCHEMA = Schema("click", (DenseFeature("price", "standardize"),), (SparseFeature("shop", ids="dictionary"),))


def _write(folder: Path, prices: list, labels: list[int] | None = None, **more: list | pa.Array) -> Path:
    table = {"click": labels or [n % 2 for n in range(len(prices))], "price": prices}
    pq.write_table(
        pa.table({**table, "shop": [f"s{n % 3}" for n in range(len(prices))], **more}), folder / "log.parquet"
    )
    return folder / "log.parquet"


def _prices(folder: Path, split: str) -> list[float]:
    return pq.read_table(folder / split).column("price").to_pylist()


@pytest.mark.parametrize("price", [0.1, 0.5, 1e-30, -7.7, 1.7e12])
def test_a_constant_column_keeps_later_values_ordinary(tmp_path: Path, capsys, price: float):
    file = _write(tmp_path, [price] * 80 + [price + 1] * 20)
    schema = prepare(RawData((str(file),), SCHEMA, split=SplitConfig("time")), tmp_path / "data")
    assert schema.dense[0].deviation == 1 and schema.dense[0].mean == price
    assert set(_prices(tmp_path / "data", "train")) == {0.0}
    assert _prices(tmp_path / "data", "test") == pytest.approx([1.0] * 10)
    assert "'price': all training rows with a value have" in capsys.readouterr().err


def test_a_small_deviation_beside_a_large_mean_is_no_constant(tmp_path: Path):
    file = _write(tmp_path, [1e8 + n % 2 for n in range(100)])
    schema = prepare(RawData((str(file),), SCHEMA), tmp_path / "data")
    assert schema.dense[0].deviation == pytest.approx(0.5)


def test_a_column_without_values_is_zero(tmp_path: Path):
    file = _write(tmp_path, [None] * 100)
    schema = prepare(RawData((str(file),), SCHEMA), tmp_path / "data")
    assert (schema.dense[0].mean, schema.dense[0].deviation, schema.dense[0].missing) == (0, 1, 1)
    assert set(_prices(tmp_path / "data", "train")) == {0.0}


def test_what_cannot_be_standardized_rejects_its_row(tmp_path: Path):
    file = _write(tmp_path, [n % 5 * 1e-150 for n in range(90)] + [1.0] * 10)
    config = SplitConfig("time")
    with pytest.raises(ValueError, match=r"10 of 100 rows were rejected.*too far from the mean of the training rows"):
        prepare(RawData((str(file),), SCHEMA, split=config), tmp_path / "data")
    assert len((tmp_path / "data.rejects.jsonl").read_text().splitlines()) == 10


def test_one_class_and_empty_splits_are_said_aloud(tmp_path: Path, capsys):
    file = _write(tmp_path, [1.0, 2.0] * 10, labels=[0] * 20)
    split = SplitConfig("time", validation_share=0, test_share=0)
    prepare(RawData((str(file),), SCHEMA, split=split), tmp_path / "data")
    said = capsys.readouterr().err
    assert "all 20 training rows have the label 0" in said
    assert "the validation split has no rows" in said and "the test split has no rows" in said
    assert read_manifest(tmp_path / "data")["splits"]["train"]["rows"] == 20


DAYS = [datetime.datetime(2024, 1, 1) + datetime.timedelta(days=n * 7 % 100) for n in range(100)]


@pytest.mark.parametrize(
    "times",
    [
        pa.array(DAYS, pa.timestamp("us")),
        pa.array(DAYS, pa.timestamp("ns", "America/New_York")),
        pa.array([day.date() for day in DAYS]),
        pa.array([day.isoformat() for day in DAYS]),
        pa.array([day.strftime("%Y-%m-%d %H:%M:%S") for day in DAYS]),
        pa.array([int(day.timestamp()) for day in DAYS]),
        pa.array([str(day.timestamp()) for day in DAYS]),
    ],
    ids=lambda times: str(times.type),
)
def test_a_split_by_time_orders_dates_and_times(tmp_path: Path, times: pa.Array):
    file = _write(tmp_path, [float(n * 7 % 100) for n in range(100)], at=times)
    schema = Schema("click", (DenseFeature("price"),), (SparseFeature("shop", 9, "hash"),))
    prepare(RawData((str(file),), schema, split=SplitConfig("time", "at")), tmp_path / "data")
    assert sorted(_prices(tmp_path / "data", "test")) == list(range(90, 100))


def test_what_is_no_time_is_refused_with_its_column(tmp_path: Path):
    file = _write(tmp_path, [1.0] * 100, at=["noon"] * 100)
    with pytest.raises(ValueError, match=r"column 'at': expected a number, a date or a time such as .* found 'noon'"):
        prepare(RawData((str(file),), SCHEMA, split=SplitConfig("time", "at")), tmp_path / "data")
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "data.rejects.jsonl").read_text().splitlines()]
    assert len(reasons) == 100 and not any("//" in reason for reason in reasons)


def test_equal_times_on_both_sides_are_said_aloud(tmp_path: Path, capsys):
    file = _write(tmp_path, [1.0] * 100, at=[n // 30 for n in range(100)])
    prepare(RawData((str(file),), SCHEMA, split=SplitConfig("time", "at")), tmp_path / "data")
    assert "rows have the time at which validation begins and lie on both sides of it" in capsys.readouterr().err
