import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from inference.conftest import build_mlp
from support import click_table, make_click_data

from nasrec_torchrec.datasets.config import SplitConfig, TextFlags, TextFormat
from nasrec_torchrec.datasets.crosses import cross_of
from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.datasets.preparation import RawData, prepare
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.datasets.words import DICTIONARIES
from nasrec_torchrec.inference import scoring as scoring_module
from nasrec_torchrec.inference.config import ScoringConfig
from nasrec_torchrec.inference.exporting import export
from nasrec_torchrec.inference.predictor import Predictor
from nasrec_torchrec.inference.scoring import requests, score
from nasrec_torchrec.runs.lock import lock

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


def test_a_killed_scoring_resumes(package, prepared, tmp_path: Path, monkeypatch):
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
    (out / ".part-000002.parquet.1.nasrec-tmp").write_bytes(b"half")
    assert score(package[0], [file], out, config)["rows"] == 20_000
    assert (out / "part-000000.parquet").stat().st_mtime_ns == kept and not list(out.glob(".*"))
    table = _read(out)
    assert table.column("probability").to_pylist() == pytest.approx(expected, abs=1e-6)
    assert table.column_names == ["file", "line", "d0", "probability"]
    with pytest.raises(ValueError, match="holds scores of something else; choose another --out"):
        score(package[0], [file], out, ScoringConfig(piece_mib=1))
    assert score(package[0], [file], out, ScoringConfig(piece_mib=1, overwrite=True))["rows"] == 20_000


LINES = [f"r{n}\t{'yes' if n % 2 else 'no'}\t{n}.5\tshop {n % 7}\t{'|'.join('abc'[: n % 4])}\n" for n in range(300)]


@dataclass(frozen=True)
class Trained:
    """A package, and the data set that its model belongs to."""

    package: Path
    data: Path
    schema: Schema


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    raw_schema = Schema(
        "clicked",
        (DenseFeature("price", transform="standardize"),),
        (
            SparseFeature("shop", ids="dictionary", min_count=2),
            SparseFeature("tags", 50, ids="hash", multi_hot=True),
            SparseFeature("request", 40, ids="hash"),
            cross_of(("shop", "request")),
        ),
        label_values=(("no", 0), ("yes", 1)),
    )
    source = folder / "log.tsv"
    source.write_text("".join(["request\tclicked\tprice\tshop\ttags\n", *LINES]))
    text = TextFormat(delimiter="\t", missing=("", "NA"))
    data = folder / "data"
    schema = prepare(RawData((str(source),), raw_schema, text, SplitConfig()), data)
    export(build_mlp(schema), schema, folder / "package", dictionaries=data / DICTIONARIES)
    return Trained(folder / "package", data, schema)


def test_raw_rows_are_transformed_as_the_training_data_were(trained: Trained, tmp_path: Path):
    package, data, schema = trained.package, trained.data, trained.schema
    # The same rows, prepared, by their price, which tells them apart.
    truth = {}
    for split in ("train", "validation", "test"):
        score(package, [str(data / split)], tmp_path / split, ScoringConfig(keep=("price",)))
        table = _read(tmp_path / split)
        pairs = zip(table.column("price").to_pylist(), table.column("probability").to_pylist(), strict=True)
        truth |= {round(price, 4): probability for price, probability in pairs}
    # In production there is no label, and some lines are broken.
    unlabelled = [line.split("\t") for line in LINES]
    served = ["\t".join(part for index, part in enumerate(parts) if index != 1) for parts in unlabelled]
    served[4] = "r4\tcheap\tshop 1\ta\n"
    today = tmp_path / "today.tsv"
    today.write_text("".join(["request\tprice\tshop\ttags\n", *served]))
    config = ScoringConfig(raw=True, keep=("request", "price"))
    assert score(package, [str(today)], tmp_path / "out", config) == {"rows": 299, "rejected": 1}
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
        score(package, [str(today)], tmp_path / "other", ScoringConfig())


def _score(
    trained: Trained, folder: Path, lines: list[str], header: str = "request\tclicked\tprice\tshop\ttags"
) -> pa.Table:
    """Probabilities of raw rows that are read as the schema says."""
    folder.mkdir(exist_ok=True)
    (folder / "rows.tsv").write_text("".join([header, "\n", *lines]))
    score(trained.package, [str(folder / "rows.tsv")], folder / "out", ScoringConfig(raw=True, keep=("request",)))
    return _read(folder / "out").column("probability").to_pylist()


def test_a_label_is_not_looked_at(trained: Trained, tmp_path: Path):
    expected = _score(trained, tmp_path / "labelled", LINES)
    assert len(expected) == 300
    for number, label in enumerate(["", "maybe", "-1"]):
        lines = [line.replace("\tyes\t", f"\t{label}\t").replace("\tno\t", f"\t{label}\t") for line in LINES]
        assert _score(trained, tmp_path / str(number), lines) == expected


def test_the_reading_rules_of_the_training_data_hold(trained: Trained, tmp_path: Path):
    empty = _score(trained, tmp_path / "empty", ["r1\tyes\t\t\ta\n"] * 20)
    assert _score(trained, tmp_path / "marked", ["r1\tyes\tNA\tNA\ta\n"] * 20) == empty
    flags = ScoringConfig(raw=True)
    (tmp_path / "commas.csv").write_text("request,price,shop,tags\n" + "r1,NA,NA,a\n" * 20)
    score(trained.package, [str(tmp_path / "commas.csv")], tmp_path / "out", flags, TextFlags(delimiter=","))
    assert _read(tmp_path / "out").column("probability").to_pylist() == empty


def test_unknown_and_missing_values_are_counted_and_said_aloud(trained: Trained, tmp_path: Path, capsys):
    _score(trained, tmp_path / "good", LINES)
    assert "warning" not in capsys.readouterr().err
    _score(trained, tmp_path / "bad", [line.replace("shop ", "SHOP ") for line in LINES[:200]])
    said = capsys.readouterr().err
    assert "'shop': 100.0% of 200 values are unknown, that is not in the dictionary; in the training rows" in said
    quality = json.loads((tmp_path / "bad" / "out" / "_quality.json").read_text())
    assert quality["shop"]["unknown"] == quality["shop"]["values"] == quality["shop"]["rows"] == 200


def test_an_id_that_no_table_has_is_the_missing_one_and_counted(package, tmp_path: Path, capsys):
    folder, _, schema = package
    table = click_table(make_click_data(schema, 50), schema)
    name = next(feature.name for feature in schema.sparse if not feature.multi_hot)
    place = table.column_names.index(name)
    for file, number in (("far", 10**9), ("negative", -5), ("missing", 0)):
        pq.write_table(table.set_column(place, name, pa.array([number] * 50)), tmp_path / f"{file}.parquet")
    found = {}
    for file in ("far", "negative", "missing"):
        score(folder, [str(tmp_path / f"{file}.parquet")], tmp_path / file, ScoringConfig())
        found[file] = _read(tmp_path / file).column("probability").to_pylist()
        said = capsys.readouterr().err
        assert (f"'{name}': 100.0% of 50 values are unknown" in said) == (file != "missing")
    assert found["far"] == found["negative"] == found["missing"]


def test_rows_of_another_preparation_are_refused(trained: Trained, tmp_path: Path):
    shutil.copytree(trained.data, tmp_path / "data")
    (tmp_path / "log.csv").write_text("clicked,price,shop\n" + "1,2,a\n0,3,b\n" * 50)
    schema = Schema("clicked", (DenseFeature("price"),), (SparseFeature("shop", 9, "hash"),))
    prepare(RawData((str(tmp_path / "log.csv"),), schema), tmp_path / "other")
    with pytest.raises(ValueError, match=r"the model was trained on data of another schema: .* here and .* there"):
        score(trained.package, [str(tmp_path / "other" / "test")], tmp_path / "out", ScoringConfig())
    (file,) = (tmp_path / "data" / "test").iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="was changed or is damaged"):
        score(trained.package, [str(tmp_path / "data" / "test")], tmp_path / "out", ScoringConfig())


def test_scores_of_a_replaced_file_are_not_continued(trained: Trained, tmp_path: Path):
    _score(trained, tmp_path, LINES)
    with pytest.raises(ValueError, match="holds scores of something else; choose another --out, or --overwrite true"):
        _score(trained, tmp_path, LINES[::-1])


def test_two_at_once_are_refused(trained: Trained, tmp_path: Path):
    with lock(tmp_path / "out"), pytest.raises(ValueError, match=r"out: process .* is writing here"):
        _score(trained, tmp_path, LINES)
    assert len(_score(trained, tmp_path, LINES)) == 300


def test_nothing_scored_is_an_error(trained: Trained, tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"all 300 rows were rejected; the first is .*rows\.tsv, line 2: column 'price'"
    ):
        _score(trained, tmp_path, [line.replace(".5\t", ",5\t") for line in LINES])
    with pytest.raises(ValueError, match=r"keep: \['probability'\] are columns of the scores themselves"):
        score(
            trained.package,
            [str(tmp_path / "rows.tsv")],
            tmp_path / "new",
            ScoringConfig(raw=True, keep=("probability",)),
        )


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
