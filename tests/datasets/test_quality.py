"""Values that were lost without an error are counted, and said aloud."""

from pathlib import Path

import pytest

from nasrec_torchrec.datasets.config import PreparationConfig, SplitConfig
from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.datasets.preparation import RawData, prepare
from nasrec_torchrec.datasets.prepared import read_manifest
from nasrec_torchrec.datasets.quality import Counts, Quality
from nasrec_torchrec.datasets.schema import Schema

SCHEMA = Schema(
    "click",
    (DenseFeature("price", missing=0.25), DenseFeature("age", "standardize", mean=0.0, deviation=1.0, missing=0.0)),
    (SparseFeature("shop", 10, "dictionary", missing=0.0, unknown=0.05), SparseFeature("page", 10)),
)


def test_a_share_far_above_that_of_training_is_one_sentence():
    good = {name: Counts(100, 0, 100, 0) for name in ("price", "age", "shop", "page")}
    assert Quality(SCHEMA, good).warnings() == []
    # Ten points above training are within what is normal.
    assert Quality(SCHEMA, good | {"price": Counts(100, 35, 65)}).warnings() == []
    (warning,) = Quality(SCHEMA, good | {"price": Counts(100, 36, 64)}).warnings()
    assert warning == "'price': 36.0% of 100 rows have no value; in the training rows it was 25.0%"
    (warning,) = Quality(SCHEMA, good | {"shop": Counts(100, 0, 100, 90)}).warnings()
    assert warning == (
        "'shop': 90.0% of 100 values are unknown, that is not in the dictionary; in the training rows it was 5.0%"
    )
    (warning,) = Quality(SCHEMA, good | {"page": Counts(100, 0, 100, 90)}).warnings()
    assert warning == "'page': 90.0% of 100 values are unknown, that is not in the table"
    (warning,) = Quality(SCHEMA, good | {"age": Counts(100, 0, 100, 0, -420.0)}).warnings()
    assert "'age': the mean of 100 values lies 4.2 standard deviations from that of the training rows" in warning


def test_counts_of_parts_add_up():
    part = Quality(SCHEMA, {"shop": Counts(10, 1, 9, 2)}).to_json()
    total = Quality.of(SCHEMA, [part, part])
    assert total.counts["shop"] == Counts(20, 2, 18, 4) and total.counts["price"] == Counts()


def test_preparation_counts_every_split_and_compares_it_with_train(tmp_path: Path, capsys):
    rows = [f"{n % 2},{'' if n % 4 == 0 else n},{'old' if n < 80 else 'new'} {n % 4},{n % 5}\n" for n in range(100)]
    (tmp_path / "log.csv").write_text("click,price,shop,page\n" + "".join(rows))
    schema = Schema(
        "click", (DenseFeature("price"),), (SparseFeature("shop", ids="dictionary"), SparseFeature("page", 5))
    )
    raw = RawData((str(tmp_path / "log.csv"),), schema, split=SplitConfig("time"))
    measured = prepare(raw, tmp_path / "data")
    assert measured.dense[0].missing == 0.25
    assert (measured.sparse[0].missing, measured.sparse[0].unknown) == (0, 0)
    assert measured.sparse[1].missing == pytest.approx(0.2)
    quality = read_manifest(tmp_path / "data")["quality"]
    assert quality["train"]["price"]["missing"] == 20 and quality["test"]["shop"]["unknown"] == 10
    said = capsys.readouterr().err
    assert "warning: validation: 'shop': 100.0% of 10 values are unknown" in said
    assert "warning: test: 'shop': 100.0% of 10 values are unknown" in said and "'page'" not in said


def test_an_id_that_its_table_does_not_have_rejects_the_row_of_a_preparation(tmp_path: Path):
    (tmp_path / "log.csv").write_text("click,page\n" + "".join(f"{n % 2},{n % 12}\n" for n in range(120)))
    raw = RawData((str(tmp_path / "log.csv"),), Schema("click", (), (SparseFeature("page", 10),)))
    with pytest.raises(ValueError, match=r"20 of 120 rows were rejected.*line 12: column 'page'"):
        prepare(raw, tmp_path / "data")
    prepare(raw, tmp_path / "data", PreparationConfig(max_rejects=0.5))
    assert read_manifest(tmp_path / "data")["rejected"] == 20
