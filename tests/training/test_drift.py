"""Which validation loss decides where the click rate drifts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nasrec_torchrec.datasets.config import SplitConfig
from nasrec_torchrec.datasets.features import SparseFeature
from nasrec_torchrec.datasets.preparation import RawData, prepare
from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.metrics.click_metrics import ClickMetrics
from nasrec_torchrec.search.race.config import RaceConfig
from nasrec_torchrec.search.race.run import auto
from nasrec_torchrec.training.config import TrainFlags
from nasrec_torchrec.training.drift import deciding_loss, decisive, drift
from nasrec_torchrec.training.jobs import run as run_training

SCHEMA = Schema("clicked", (), (SparseFeature("shop", 4),), 8)


def _drift(train: tuple[int, int], validation: tuple[int, int], kept: float = 1.0) -> float:
    """The drift between splits of so many clicks and rows."""
    splits = [ClickFiles(SCHEMA, (), ((0, 0, rows),), (), clicks=clicks) for clicks, rows in (train, validation)]
    return drift(replace(splits[0], keep_negatives=kept), splits[1])


def test_click_rates_that_chance_explains_are_no_drift():
    assert deciding_loss(_drift((2500, 10_000), (260, 1000))) == "log_loss"
    assert deciding_loss(_drift((2500, 10_000), (330, 1000))) == "centered_log_loss"
    assert deciding_loss(_drift((2500, 10_000), (180, 1000))) == "centered_log_loss"
    assert _drift((2500, 10_000), (180, 1000)) < 0 < _drift((2500, 10_000), (330, 1000))
    assert np.isfinite(_drift((0, 10), (10, 10)))
    # Every fourth row without a click was kept: the rate of all rows is that of validation.
    assert deciding_loss(_drift((2500, 5000), (2000, 10_000))) == "centered_log_loss"
    assert deciding_loss(_drift((2500, 5000), (2000, 10_000), kept=0.25)) == "log_loss"
    unknown = ClickFiles(SCHEMA, (), ((0, 0, 100),), ())
    assert drift(unknown, unknown) == drift(replace(unknown, groups=(), clicks=0), unknown) == 0.0


def test_without_a_centered_loss_the_plain_one_decides():
    known = ClickMetrics(0.7, 0.5, 0.9, 100, centered_log_loss=0.4)
    assert decisive(known, "centered_log_loss") == 0.4 and decisive(known, "log_loss") == 0.5
    assert decisive(ClickMetrics(None, 0.5, None, 100), "centered_log_loss") == 0.5
    assert decisive({"log_loss": 0.5}, "centered_log_loss") == 0.5  # written by an older version


@pytest.fixture(scope="module")
def drifting(tmp_path_factory) -> Path:
    """A prepared data set whose click rate is .5 in training, .2 in validation and .7 in the test split."""
    folder = tmp_path_factory.mktemp("drifting")
    rng = np.random.default_rng(0)
    files = []
    for name, rows, rate in (("train", 1200, 0.5), ("validation", 400, 0.2), ("test", 400, 0.7)):
        shop = rng.integers(0, 4, rows)
        clicked = rng.random(rows) < rate + 0.1 * (shop - 1.5)
        files.append(str(folder / f"{name}.parquet"))
        pq.write_table(pa.table({"clicked": clicked.astype(int), "shop": shop}), files[-1])
    prepare(RawData(tuple(files), SCHEMA, split=SplitConfig("given")), folder / "data")
    return folder / "data"


@pytest.mark.parametrize("monitor", (None, "log_loss"))
def test_a_race_is_decided_by_the_centered_loss_where_the_click_rate_drifts(
    drifting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monitor: Any
):
    own: dict[str, Any] = {"features": False, "drop_columns": False, "monitor": monitor}
    results = auto(drifting, tmp_path / "out", RaceConfig(trials=2, epochs=2, final_seeds=1, finalists=1, **own))
    assert results is not None
    (winner,) = results["measured"]["winner"]["validation"]
    wanted = monitor or "centered_log_loss"
    assert results["monitor"] == wanted and winner["centered_log_loss"] < winner["log_loss"] - 0.05
    assert results["leaderboard"][0]["log_loss"] == pytest.approx(winner[wanted], abs=1e-6)
    said = "the click rate of the validation rows differs from that of the training rows by" in capsys.readouterr().err
    page = (tmp_path / "out" / "report.html").read_text()
    assert said == (monitor is None) == ("not rewarded for predictions that are too low" in page)


def test_a_training_keeps_the_epoch_and_the_seed_of_the_lowest_centered_loss(
    drifting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    flags = TrainFlags(epochs=4, learning_rate=0.03)
    best = run_training(drifting, tmp_path / "out", flags, architecture="mlp", seeds=(0, 1))
    assert best is not None and "standard errors off: the log loss with the mean moved to it decides" in _said(capsys)
    kept = [run["validation"] for run in best["runs"]]
    assert best["mean_centered_log_loss"] == pytest.approx(sum(found["centered_log_loss"] for found in kept) / 2)
    for run in best["runs"]:
        log = (tmp_path / "out" / run["folder"] / "log.jsonl").read_text().splitlines()
        measured = [event for event in map(json.loads, log) if event["event"] == "validation"]
        assert run["validation"]["centered_log_loss"] == min(event["centered_log_loss"] for event in measured)
    # Said otherwise, the plain loss decides, and nothing is said.
    flags = replace(flags, epochs=1, monitor="log_loss")
    plain = run_training(drifting, tmp_path / "plain", flags, architecture="mlp")
    assert plain is not None and "mean_centered_log_loss" not in plain and "errors off" not in _said(capsys)


def _said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err
