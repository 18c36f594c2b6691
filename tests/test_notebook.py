"""The notebook of the tutorial: it runs, and the one that is committed is the one that runs."""

from pathlib import Path

import numpy as np
import pytest

nbformat = pytest.importorskip("nbformat")
pandas = pytest.importorskip("pandas")
pytest.importorskip("nbclient")

from tutorial_notebook import PAGE, executed, written  # noqa: E402  after the packages that it imports


def _flights(rows: int) -> "pandas.DataFrame":
    """Rows with the columns of the real table; evening flights of one airline are late."""
    random = np.random.default_rng(0)
    start = pandas.Timestamp("2013-01-01T05:00:00Z")
    times = start + pandas.to_timedelta(np.sort(random.integers(0, 365 * 24, rows)), "h")
    carrier = random.choice(["UA", "B6", "EV"], rows)
    late = 30.0 * ((carrier == "EV") & (times.hour > 14)) + random.normal(0, 15, rows)
    return pandas.DataFrame(
        {
            "month": times.month,
            "day": times.day,
            "sched_dep_time": times.hour * 100 + 5,
            "sched_arr_time": (times.hour + 2) * 100,
            "arr_delay": np.where(random.random(rows) < 0.02, np.nan, np.round(late)),
            "carrier": carrier,
            "flight": random.integers(1, 900, rows),
            "tailnum": [f"N{number}" for number in random.integers(1, 400, rows)],
            "origin": random.choice(["JFK", "LGA", "EWR"], rows),
            "dest": random.choice(["SFO", "LAX", "ORD", "ATL"], rows),
            "distance": random.integers(80, 3000, rows),
            "hour": times.hour,
            "minute": 5,
            "time_hour": times.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
    )


@pytest.mark.extended
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _flights(4000).to_csv(tmp_path / "flights.csv", index=False)
    monkeypatch.setenv("BUDGET", "20s")  # of the clock, on a machine that runs other tests too
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1]))
    cells = [cell for cell in executed(tmp_path, timeout=600).cells if cell.cell_type == "code"]
    texts = ["".join(str(output.get("text") or output.get("data")) for output in cell.outputs) for cell in cells]
    for text, expected in zip(texts, ("arr_delay", "carrier", "rejected", "0.", "column, shuffled"), strict=False):
        assert expected in text
    assert any("log loss" in text for text in texts[5:6]) and "calibrated by platt" in texts[6]
    (probability,) = eval(cells[-1].outputs[-1]["data"]["text/plain"])
    assert 0 < probability < 1 and (tmp_path / "evaluation.html").exists()


def test_the_committed_notebook_is_this_one_with_its_outputs():
    committed, source = nbformat.read(PAGE, as_version=4), written()
    assert [cell.source for cell in committed.cells] == [cell.source for cell in source.cells]
    for cell in committed.cells:
        if cell.cell_type == "code":
            assert cell.outputs and all(output.output_type != "error" for output in cell.outputs)
