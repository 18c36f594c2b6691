"""The yardstick of a race, and what its verdict says about it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import log_loss, roc_auc_score
from support import prepare_pairs

from nasrec_torchrec.datasets.config import SplitConfig
from nasrec_torchrec.datasets.crosses import add_crosses, history_of
from nasrec_torchrec.datasets.features import SparseFeature
from nasrec_torchrec.datasets.preparation import RawData, prepare
from nasrec_torchrec.datasets.prepared import load_schema, open_split
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.models.stored_trees import read_record
from nasrec_torchrec.search.race import tree
from nasrec_torchrec.search.race.config import RaceConfig
from nasrec_torchrec.search.race.run import auto
from nasrec_torchrec.search.race.tree import measure_tree, predict_tree, train_tree
from nasrec_torchrec.search.race.verdict import verdict


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    add_crosses(prepare_pairs(folder / "plain", 3000), folder / "data", [history_of(("user", "item"))])
    return folder / "data"


def test_a_tree_reads_categories_and_counts_and_is_trained_once(data: Path, tmp_path: Path):
    schema = load_schema(data)
    assert read_record(tmp_path) is None
    result = train_tree(data, schema, tmp_path, None)
    booster = lightgbm.Booster(model_file=tmp_path / "model.txt")
    names = booster.feature_name()
    history = "history_of_user_x_item"
    assert {f"{history}_clicks", f"{history}_others"} <= set(names) and history not in names
    assert result.features == [history] and result.recipe.startswith(f"{booster.num_trees()} trees")
    # The same metrics as from the rows as they are stored.
    rows = pq.read_table(data / "validation")
    table = {name: rows[name].to_numpy() for name in schema.feature_names}
    table[f"{history}_clicks"], table[f"{history}_others"] = np.divmod(table[history] - 1, 12)
    probability = booster.predict(np.stack([table[name] for name in names], 1).astype(float))
    label, found = rows[schema.label].to_numpy(), result.validation[0]
    assert found["log_loss"] == pytest.approx(log_loss(label, probability), abs=1e-6)
    assert found["auc"] == pytest.approx(roc_auc_score(label, probability), abs=1e-4)
    assert read_record(tmp_path) == result == train_tree(data, schema, tmp_path, None)
    again = train_tree(data, schema, tmp_path / "again", None)
    assert replace(again, seconds=0.0) == replace(result, seconds=0.0)
    # Other columns are another tree.
    fewer = train_tree(data, schema.without([history]), tmp_path, None)
    assert fewer.features == [] and fewer.sha256 != result.sha256


def test_a_damaged_record_of_a_tree_is_named(data: Path, tmp_path: Path):
    train_tree(data, load_schema(data), tmp_path, 0.0)
    record = json.loads((tmp_path / "result.json").read_text())
    (tmp_path / "result.json").write_text(json.dumps({name: record[name] for name in record if name != "seconds"}))
    with pytest.raises(ValueError, match=r"result\.json: damaged, seconds: .*; remove it to train the tree again"):
        read_record(tmp_path)


def test_a_tree_without_time_is_one_of_few_trees(data: Path, tmp_path: Path):
    schema = load_schema(data)
    hurried, whole = (train_tree(data, schema, tmp_path / str(s), s) for s in (0.0, 60.0))
    assert hurried.recipe.startswith("1 trees")
    assert whole.validation[0]["log_loss"] < hurried.validation[0]["log_loss"]
    assert measure_tree(tmp_path / "60.0", open_split(data, "validation")) == whole.validation[0]


def _measured(title: str, loss: float) -> dict[str, Any]:
    return {
        "title": title,
        "recipe": "as usual",
        "features": [],
        "dropped": [],
        "test": [{"log_loss": loss, "auc": 0.8}],
    }


def test_a_tree_is_trained_on_the_first_rows_and_predicts_all(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    schema = load_schema(data)
    monkeypatch.setattr(tree, "_MOST_ROWS", 500)
    record = train_tree(data, schema, tmp_path, None)
    assert record.recipe.endswith("early stopping, the first 500 rows")
    logits, labels, weights = predict_tree(tmp_path, open_split(data, "test"))
    assert len(logits) == len(labels) == len(open_split(data, "test")) and weights is None


_TOGETHER = {
    "folders": ["trials/0001", "tree"],
    "titles": ["dlrm 64", "LightGBM"],
    "test": {"log_loss": 0.38, "auc": 0.8},
}


@pytest.mark.parametrize(("high", "first"), [(-0.002, "Adopt the mean prediction of"), (0.002, "No difference shown")])
def test_models_together_that_are_better_than_the_tree_come_first(high: float, first: str):
    gain = {"mean": -0.01, "low": -0.02, "high": high, "rows": 1000}
    together = _TOGETHER | {"difference": gain, "difference to the tree": gain}
    measured = {"winner": _measured("dlrm 64", 0.4), "tree": _measured("LightGBM", 0.39)}
    suspicious: dict[str, Any] = {"certain": [], "left_out": []}
    judged = {"judged": [], "combinations": 0}
    results = {"measured": measured, "trials": [], "suspicious": suspicious, "features": judged, "ensemble": together}
    lines = verdict(results).splitlines()
    assert lines[0].startswith(first) and "lower than that of LightGBM alone by 0.01000" in lines[0]
    assert lines[1].startswith("A tree is better than the best network")
    assert not verdict(results | {"ensemble": together | {"test": {"log_loss": 0.395, "auc": 0.8}}}).startswith(first)


@pytest.mark.parametrize(("loss", "first"), [(0.39, "A tree is better"), (0.41, "Winner: dlrm")])
def test_the_verdict_begins_with_the_tree_where_it_is_better(loss: float, first: str):
    measured = {"winner": _measured("dlrm 64", 0.4), "tree": _measured("LightGBM", loss)}
    trials = [{"trial": {"features": ["a_x_b"]}}]
    certain = [{"columns": ["a", "b"], "gain": 0.1, "certain_rows": 1234}]
    suspicious = {"certain": certain, "left_out": [{"columns": ["user", "hour"], "gain": 0.1, "certain_rows": 0}]}
    judged = {"judged": [], "combinations": 0}
    results = {"measured": measured, "trials": trials, "suspicious": suspicious, "features": judged}
    text = verdict(results)
    warning = "all 1,234 validation rows whose a_x_b was mostly clicked"
    assert warning not in text  # the winner does not use the pair
    measured["winner"]["features"] = ["history_of_a_x_b"]
    assert warning in verdict(results)
    assert "Left out: the histories of user_x_hour." in text
    assert text.startswith(first)
    assert ("tried to close the gap: a_x_b" in text) == (loss < 0.4)
    assert f"A tree, LightGBM: test log loss {loss:.5f}" in text
    # What is said of the networks does not tell to adopt one where a tree is better.
    measured["baseline"] = measured["winner"]
    lines = verdict(results).splitlines()
    among = [line for line in lines if "no difference: the best tuned baseline won" in line.lower()]
    assert [line.startswith("Among the networks: no difference") for line in among] == [loss < 0.4]


def test_the_verdict_says_where_a_weaker_l2_had_a_lower_validation_loss():
    rows: list[dict[str, Any]] = [
        {"trials": [number], "model": "dlrm 64", "features": [], "dropped": [], "log_loss": loss, "status": "complete"}
        | {"recipe": recipe, "decay": decay}
        for number, loss, recipe, decay in ((1, 0.398, "adam 0.001", 0.0), (2, 0.4, "adam 0.01, L2 0.05", 5e-4))
    ]
    results: dict[str, Any] = {
        "measured": {"winner": _measured("dlrm 64", 0.4)},
        "trials": [],
        "suspicious": {"certain": [], "left_out": []},
        "features": {"judged": [], "combinations": 0},
        "leaderboard": rows,
        "winner": 2,
    }
    assert "its loss there is 0.40000, and 0.39800 with adam 0.001." in verdict(results)
    assert "strongest L2" not in verdict(results | {"winner": 1})
    assert "strongest L2" not in verdict(results | {"leaderboard": [rows[0] | {"dropped": ["hour"]}, rows[1]]})
    # A recipe whose L2 is as strong has lost for another reason.
    assert "strongest L2" not in verdict(results | {"leaderboard": [rows[0] | {"decay": 5e-4}, rows[1]]})


def test_the_verdict_of_one_training_praises_no_winner():
    winner = _measured("dlrm 64", 0.4)
    row = {"trials": [1], "model": "dlrm 64", "baseline": True, "seeds": 1, "decay": 0.0, "log_loss": 0.4}
    results: dict[str, Any] = {
        "measured": {"winner": winner, "baseline": winner, "baseline without added features": winner},
        "trials": [],
        "suspicious": {"certain": [], "left_out": []},
        "features": {"judged": [], "combinations": 0},
        "leaderboard": [row | {"features": [], "dropped": [], "status": "complete", "recipe": "as usual"}],
        "winner": 1,
    }
    first, second = verdict(results).splitlines()
    assert first.startswith("Nothing was compared: the race held only one training, of dlrm 64")
    assert second.startswith("Winner: dlrm 64")


def test_data_that_trees_cannot_read_has_no_yardstick(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rng = np.random.default_rng(0)
    files = []
    for name in ("train", "validation", "test"):
        tags = [[int(tag)] * int(count) for tag, count in zip(*rng.integers(0, 4, (2, 300)), strict=True)]
        table = pa.table({"clicked": [len(one) % 2 for one in tags], "tags": pa.array(tags, pa.list_(pa.int64()))})
        files.append(str(tmp_path / f"{name}.parquet"))
        pq.write_table(table, files[-1])
    schema = Schema("clicked", (), (SparseFeature("tags", 4, multi_hot=True),), 8)
    prepare(RawData(tuple(files), schema, split=SplitConfig("given")), tmp_path / "data")
    results = auto(tmp_path / "data", tmp_path / "out", RaceConfig(trials=1, epochs=1, features=False))
    assert results is not None and "tree" not in results["measured"]
    assert "no yardstick: trees read numbers and single ids" in capsys.readouterr().err
