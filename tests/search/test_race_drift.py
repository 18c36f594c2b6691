"""Which validation loss decides where the click rate drifts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nasrec_torchrec.datasets.config import SplitConfig
from nasrec_torchrec.datasets.features import SparseFeature
from nasrec_torchrec.datasets.preparation import RawData, prepare
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.metrics.click_metrics import ClickMetrics
from nasrec_torchrec.search.race.config import RaceConfig
from nasrec_torchrec.search.race.drift import deciding_loss, decisive, drift
from nasrec_torchrec.search.race.run import auto


def _splits(train: Sequence[int], validation: Sequence[int]) -> dict[str, dict[str, int]]:
    named = (("train", train), ("validation", validation))
    return {name: {"positives": clicks, "rows": rows} for name, (clicks, rows) in named}


def test_click_rates_that_chance_explains_are_no_drift():
    assert deciding_loss(drift(_splits((2500, 10_000), (260, 1000)))) == "log_loss"
    assert deciding_loss(drift(_splits((2500, 10_000), (330, 1000)))) == "centered_log_loss"
    assert deciding_loss(drift(_splits((2500, 10_000), (180, 1000)))) == "centered_log_loss"
    assert drift(_splits((2500, 10_000), (180, 1000))) < 0 < drift(_splits((2500, 10_000), (330, 1000)))
    assert np.isfinite(drift(_splits((0, 10), (10, 10))))
    # Every fourth row without a click was kept: the rate of all rows is that of validation.
    sampled = _splits((2500, 5000), (2000, 10_000))
    assert deciding_loss(drift(sampled)) == "centered_log_loss"
    assert deciding_loss(drift(sampled, log_odds_added=np.log(4))) == "log_loss"


def test_without_a_centered_loss_the_plain_one_decides():
    known = ClickMetrics(0.7, 0.5, 0.9, 100, centered_log_loss=0.4)
    assert decisive(known, "centered_log_loss") == 0.4 and decisive(known, "log_loss") == 0.5
    assert decisive(ClickMetrics(None, 0.5, None, 100), "centered_log_loss") == 0.5
    assert decisive({"log_loss": 0.5}, "centered_log_loss") == 0.5  # written by an older version


@pytest.mark.parametrize("monitor", (None, "log_loss"))
def test_a_race_is_decided_by_the_centered_loss_where_the_click_rate_drifts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monitor: str | None
):
    rng = np.random.default_rng(0)
    files = []
    for name, rows, rate in (("train", 1200, 0.5), ("validation", 400, 0.2), ("test", 400, 0.7)):
        shop = rng.integers(0, 4, rows)
        clicked = rng.random(rows) < rate + 0.1 * (shop - 1.5)
        files.append(str(tmp_path / f"{name}.parquet"))
        pq.write_table(pa.table({"clicked": clicked.astype(int), "shop": shop}), files[-1])
    schema = Schema("clicked", (), (SparseFeature("shop", 4),), 8)
    prepare(RawData(tuple(files), schema, split=SplitConfig("given")), tmp_path / "data")
    config = RaceConfig(
        trials=2, epochs=2, final_seeds=1, finalists=1, features=False, drop_columns=False, monitor=monitor
    )
    results = auto(tmp_path / "data", tmp_path / "out", config)
    assert results is not None
    (winner,) = results["measured"]["winner"]["validation"]
    wanted = monitor or "centered_log_loss"
    assert results["monitor"] == wanted and winner["centered_log_loss"] < winner["log_loss"] - 0.05
    assert results["leaderboard"][0]["log_loss"] == pytest.approx(winner[wanted], abs=1e-6)
    said = "the click rate of the validation rows differs from that of the training rows by" in capsys.readouterr().err
    page = (tmp_path / "out" / "report.html").read_text()
    assert said == (monitor is None) == ("not rewarded for predictions that are too low" in page)
