import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support import SMALL_SPACE, click_table, make_click_data

from nasrec_torchrec.datasets.config import SplitConfig, TextFormat
from nasrec_torchrec.datasets.crosses import cross_of
from nasrec_torchrec.datasets.preparation import RawData, prepare
from nasrec_torchrec.datasets.prepared import DICTIONARIES
from nasrec_torchrec.datasets.schema import DenseFeature, Schema, SparseFeature
from nasrec_torchrec.inference import scoring as scoring_module
from nasrec_torchrec.inference.config import ScoringConfig
from nasrec_torchrec.inference.exporting import export
from nasrec_torchrec.inference.predictor import Predictor
from nasrec_torchrec.inference.scoring import requests, score
from nasrec_torchrec.models.description import ModelDescription

pytestmark = pytest.mark.slow  # for the package is compiled first


def _read(out: Path) -> pa.Table:
    return pq.read_table(out).combine_chunks()


@pytest.fixture
def prepared(package, tmp_path: Path) -> tuple[str, list[float]]:
    """A file of prepared rows, and their probabilities."""
    folder, _, schema = package
    data = make_click_data(schema, 20_000)
    file = tmp_path / "rows.parquet"
    pq.write_table(click_table(data, schema), file, row_group_size=6000)
    predictor = Predictor(folder)
    return str(file), torch.cat([predictor.predict(r) for r in requests(data, predictor, 5000)]).tolist()


def test_rows_are_scored_in_order(package, prepared, tmp_path: Path):
    file, expected = prepared
    counted = score(package[0], [file], tmp_path / "out", ScoringConfig(piece_mib=1))
    assert counted == {"rows": 20_000, "rejected": 0}
    table = _read(tmp_path / "out")
    assert table.column("probability").to_pylist() == pytest.approx(expected, abs=1e-6)
    assert table.column("line").to_pylist() == list(range(1, 20_001))
    assert table.column_names == ["file", "line", "label", "probability"]
    assert len(list((tmp_path / "out").glob("part-*.parquet"))) == 4


def test_a_killed_scoring_goes_on(package, prepared, tmp_path: Path, monkeypatch):
    file, expected = prepared
    config, out = ScoringConfig(piece_mib=1, keep=("d0",)), tmp_path / "out"
    write, calls = scoring_module.pq.write_table, []

    def fails(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise OSError("no space left on device")
        write(*arguments)

    monkeypatch.setattr(scoring_module.pq, "write_table", fails)
    with pytest.raises(OSError, match="no space left"):
        score(package[0], [file], out, config)
    assert len(list(out.glob("part-*"))) == 2
    kept = (out / "part-000000.parquet").stat().st_mtime_ns
    assert score(package[0], [file], out, config)["rows"] == 20_000
    assert (out / "part-000000.parquet").stat().st_mtime_ns == kept
    table = _read(out)
    assert table.column("probability").to_pylist() == pytest.approx(expected, abs=1e-6)
    assert table.column_names == ["file", "line", "d0", "probability"]
    with pytest.raises(ValueError, match="holds scores of something else; choose another --out"):
        score(package[0], [file], out, ScoringConfig(piece_mib=1))
    assert score(package[0], [file], out, ScoringConfig(piece_mib=1, overwrite=True))["rows"] == 20_000


def test_raw_rows_are_transformed_as_the_training_data_were(tmp_path: Path):
    raw_schema = Schema(
        "clicked",
        (DenseFeature("price", transform="standardize"),),
        (
            SparseFeature("shop", ids="dictionary", min_count=2),
            SparseFeature("tags", 50, ids="hash", multi_hot=True),
            SparseFeature("request", 40, ids="hash"),
            cross_of(("shop", "request")),
        ),
    )
    lines = [f"r{n}\t{n % 2}\t{n}.5\tshop {n % 7}\t{'|'.join('abc'[: n % 4])}\n" for n in range(300)]
    source = tmp_path / "log.tsv"
    source.write_text("".join(["request\tclicked\tprice\tshop\ttags\n", *lines]))
    text = TextFormat(delimiter="\t")
    data = tmp_path / "data"
    schema = prepare(RawData((str(source),), raw_schema, text, SplitConfig()), data)
    torch.manual_seed(0)
    model = ModelDescription(schema, SMALL_SPACE.sample(torch.Generator().manual_seed(3))).build().eval()
    package = tmp_path / "package"
    export(model, schema, package, dictionaries=data / DICTIONARIES)

    # The same rows, prepared, by their price, which tells them apart.
    truth = {}
    for split in ("train", "validation", "test"):
        score(package, [str(data / split)], tmp_path / split, ScoringConfig(keep=("price",)))
        table = _read(tmp_path / split)
        pairs = zip(table.column("price").to_pylist(), table.column("probability").to_pylist(), strict=True)
        truth |= {round(price, 4): probability for price, probability in pairs}
    # In production there is no label, and some lines are broken.
    unlabelled = [line.split("\t") for line in lines]
    served = ["\t".join(part for index, part in enumerate(parts) if index != 1) for parts in unlabelled]
    served[4] = "r4\tcheap\tshop 1\ta\n"
    today = tmp_path / "today.tsv"
    today.write_text("".join(["request\tprice\tshop\ttags\n", *served]))
    config = ScoringConfig(raw=True, keep=("request", "price"))
    assert score(package, [str(today)], tmp_path / "out", config, text) == {"rows": 299, "rejected": 1}
    table = _read(tmp_path / "out").to_pylist()
    assert [row["request"] for row in table] == [f"r{n}" for n in range(300) if n != 4]
    price = schema.dense[0]
    assert price.mean is not None and price.deviation is not None
    for row in table:
        standardized = round(float(torch.tensor((float(row["price"]) - price.mean) / price.deviation)), 4)
        nearest = min(truth, key=lambda known: abs(known - standardized))
        assert row["probability"] == pytest.approx(truth[nearest], abs=1e-6)
    (reject,) = map(json.loads, (tmp_path / "out" / "_rejects.jsonl").read_text().splitlines())
    assert reject["line"] == 6 and "price" in reject["reason"] and "cheap" in reject["reason"]
    with pytest.raises(ValueError, match="prepared rows are Parquet files; --raw true transforms raw ones"):
        score(package, [str(today)], tmp_path / "other", ScoringConfig(), text)


def test_unreadable_input(package, tmp_path: Path):
    with pytest.raises(ValueError, match=r"absent\.parquet: cannot be opened"):
        score(package[0], [str(tmp_path / "absent.parquet")], tmp_path / "out", ScoringConfig())
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(ValueError, match="not a readable Parquet file"):
        score(package[0], [str(tmp_path / "bad.parquet")], tmp_path / "out", ScoringConfig())
    pq.write_table(pa.table({"f0": [1]}), tmp_path / "few.parquet")
    with pytest.raises(ValueError, match="missing columns"):
        score(package[0], [str(tmp_path / "few.parquet")], tmp_path / "out", ScoringConfig())
    assert not (tmp_path / "out").exists()
