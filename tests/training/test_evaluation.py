import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import run_program

from nasrec_torchrec import datasets, training
from nasrec_torchrec.training.config import TrainConfig

SCHEMA = """
label: clicked
embedding_dim: 8
dense:
  - {name: price, transform: log1p}
  - {name: age, transform: standardize}
sparse:
  - {name: shop, ids: dictionary}
  - {name: user, ids: hash, num_embeddings: 50}
  - {name: tags, ids: hash, num_embeddings: 50, multi_hot: true}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A prepared data set and a model that was trained on it."""
    folder = tmp_path_factory.mktemp("evaluation")
    count = 2000
    table = {
        "clicked": [int(row % 7 < 2) for row in range(count)],
        "price": [float(row % 90) for row in range(count)],
        "age": [20.0 + row % 50 for row in range(count)],
        "shop": [["north", "south", None][row % 3] for row in range(count)],
        "user": [row % 40 for row in range(count)],
        "tags": [["a", "b"][: row % 3] for row in range(count)],
    }
    pq.write_table(pa.table(table), folder / "log.parquet")
    (folder / "schema.yaml").write_text(SCHEMA)
    datasets.prepare(str(folder / "log.parquet"), folder / "schema.yaml", folder / "data")
    training.run(folder / "data", folder / "run", TrainConfig(1, 100, 0.05), architecture="mlp")
    return folder / "run", folder / "data"


def _evaluate(model: tuple[Path, Path], *flags: str):
    return run_program("nasrec", "evaluate", "--model", model[0], "--data", model[1], *flags)


def test_people_get_a_table_and_programs_one_object(model: tuple[Path, Path]):
    done = _evaluate(model, "--slice", "shop,price")
    assert done.returncode == 0, done.stderr
    for text in (
        "test split\n",
        "200, 28.50% of them clicks",
        "(95 % over rows)",
        "decile",
        "\nlift  ",
        "shop",
        "north",
        "(missing)",
    ):
        assert text in done.stdout, text
    found = json.loads(_evaluate(model, "--slice", "shop,price", "--json").stdout)["test"]
    assert found["rows"] == 200 and len(found["calibration"]["deciles"]) == 10
    assert f"{found['log_loss']:.5f}" in done.stdout and f"{found['auc']:.5f}" in done.stdout


def test_slices_divide_all_rows(model: tuple[Path, Path]):
    found = training.evaluate(*model, "validation", slices=("shop", "user", "price", "age"))
    for slices in found.slices.values():
        assert sum(part.metrics.rows for part in slices) == found.rows
        clicks = sum(part.click_rate * part.metrics.rows for part in slices)
        assert clicks == pytest.approx(found.calibration.click_rate * found.rows)
    assert {part.value for part in found.slices["shop"]} == {"north", "south", "(missing)"}
    assert found.slices["user"][-1].value.endswith("other values") and len(found.slices["user"]) == 21
    # Numbers are shown as they are in the source files.
    assert len(found.slices["price"]) == 5 and found.slices["price"][0].value.startswith("0 to ")
    assert found.slices["age"][0].value.startswith("20 to ")


def test_a_slice_of_few_clicks_says_so(model: tuple[Path, Path]):
    found = training.evaluate(*model, "train", slices=("shop", "user"))
    north = next(part for part in found.slices["shop"] if part.value == "north")
    assert not north.few and north.auc_interval is not None and 0 < north.auc_interval < 0.1
    assert all(part.few and part.auc_interval > north.auc_interval for part in found.slices["user"][:-1])
    assert "± " in str(found) and "\n* fewer than 100 clicks" in str(found)
    assert "*" not in str(training.evaluate(*model, "train", slices=("shop",)))
    rates = sum(part.prediction * part.metrics.rows for part in found.slices["shop"]) / found.rows
    assert rates == pytest.approx(found.calibration.prediction)


def test_the_column_that_decides_is_the_most_important(tmp_path: Path):
    random = np.random.default_rng(0)
    large = random.random(4000) > 0.5
    table = {
        "clicked": (random.random(4000) < np.where(large, 0.8, 0.2)).astype(int),
        "size": large.astype(int),
        "noise": random.random(4000),
        "shop": random.integers(0, 5, 4000),
        "day": random.integers(0, 7, 4000),
    }
    pq.write_table(pa.table(table), tmp_path / "log.parquet")
    (tmp_path / "schema.yaml").write_text(
        "label: clicked\nembedding_dim: 8\ndense: [noise]\nsparse:\n"
        "  - {name: shop, ids: dictionary}\n  - {name: day, ids: dictionary}\n"
        "  - {name: size, ids: hash, num_embeddings: 50}\n"
        "  - {name: shop_x_size, ids: hash, num_embeddings: 99, cross: [shop, size]}\n"
    )
    datasets.prepare(str(tmp_path / "log.parquet"), tmp_path / "schema.yaml", tmp_path / "data")
    training.run(tmp_path / "data", tmp_path / "run", TrainConfig(3, 100, 0.02, optimizer="adam"), architecture="mlp")
    place = (tmp_path / "run", tmp_path / "data")
    found = training.evaluate(*place, "validation", importance=3, report=tmp_path / "page.html", slices=("shop",))
    first, *others = found.importance
    # A cross is no column of its own: it counts for those that it is made of.
    assert first.column == "size" and {one.column for one in others} == {"noise", "shop", "day"}
    assert first.log_loss > 0.1 and first.auc > 0.1 and 0 < first.deviation < 0.1
    assert all(abs(one.log_loss) < 0.02 for one in others if one.column != "shop")
    assert 0 < first.error < first.log_loss / 3 and all(0 < one.error < 0.02 for one in others)
    page = (tmp_path / "page.html").read_text()
    for text in ("Importance of the columns", "size 0.", "By shop", "<svg role='img'", "predicted / clicked"):
        assert text in page, text
    done = _evaluate(place, "--importance", "3", "--split", "validation", "--json")
    again = json.loads(done.stdout)["validation"]["importance"]
    assert [one["log_loss"] for one in again] == [one.log_loss for one in found.importance]
    assert "column, shuffled" in _evaluate(place, "--importance", "1").stdout


@pytest.mark.parametrize(
    "column, message",
    [
        ("colour", "slice: expected a feature of the data, found 'colour'; it has price, age, shop, user, tags"),
        ("tags", "slice: 'tags' has several values a row"),
    ],
)
def test_a_column_that_cannot_be_sliced_is_refused(model: tuple[Path, Path], column: str, message: str):
    done = _evaluate(model, "--slice", column)
    assert done.returncode == 2 and message in done.stderr


def test_training_prints_a_table_or_one_object(model: tuple[Path, Path], tmp_path: Path):
    words = ["--data", model[1], "--architecture", "mlp", "--batch_size", 100, "--epochs", 1, "--seeds", "0,1"]
    done = run_program("nasrec", "train", *words, "--out", tmp_path / "run")
    assert done.stdout.startswith("kept: mlp, learning rate 0.001,") and "±" in done.stdout
    done = run_program("nasrec", "train", *words, "--out", tmp_path / "run", "--json")
    assert len(json.loads(done.stdout)["runs"]) == 2
    status = run_program("nasrec", "status", tmp_path / "run", "--json")
    assert [run["state"] for run in json.loads(status.stdout).values()] == ["ended", "ended"]
