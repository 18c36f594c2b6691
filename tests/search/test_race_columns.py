"""Columns that the models of a race do without."""

from dataclasses import replace
from pathlib import Path

import pytest

from nasrec_torchrec import inference
from nasrec_torchrec.datasets.buckets import buckets_of
from nasrec_torchrec.datasets.crosses import cross_of
from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.datasets.prepared import load_schema, open_split
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.distributed.process_group import process_group
from nasrec_torchrec.metrics.click_metrics import click_metrics
from nasrec_torchrec.models.config import Baseline
from nasrec_torchrec.models.description import ClickModel, ModelDescription
from nasrec_torchrec.models.stored import load_model
from nasrec_torchrec.search.race.columns import droppable
from nasrec_torchrec.search.race.config import RaceConfig
from nasrec_torchrec.search.race.predictions import predict
from nasrec_torchrec.search.race.recipe import Recipe
from nasrec_torchrec.search.race.run import auto
from nasrec_torchrec.search.race.training import RaceData, train_trial
from nasrec_torchrec.search.race.trial import Trial, columns_text
from nasrec_torchrec.training.column_importance import ColumnImportance
from nasrec_torchrec.training.jobs import evaluate

_SCHEMA = Schema("y", (DenseFeature("age"),), (SparseFeature("a", 9), SparseFeature("b", 9), SparseFeature("c", 9)), 8)


def _found(**losses: float) -> list[ColumnImportance]:
    return [ColumnImportance(name, loss, 0.0, None, 0.001) for name, loss in losses.items()]


def test_columns_whose_importance_may_be_chance_can_be_dropped_and_half_of_them():
    found = _found(age=-0.003, a=0.0015, b=0.01, c=0.02)
    assert droppable(found, _SCHEMA, 0.5) == [("age", "a"), ("age",)]
    assert droppable(_found(age=0.1, a=0.1, b=0.1, c=0.1), _SCHEMA, 0.5) == []
    assert droppable(_found(age=0.1, a=0.1, b=0.001, c=0.1), _SCHEMA, 0.5) == [("b",)]


def test_at_most_half_of_the_columns_are_dropped_and_one_categorical_one_stays():
    assert droppable(_found(age=0.0, a=-0.1, b=-0.2, c=-0.3), _SCHEMA, 0.5)[0] == ("c", "b")
    alone = Schema("y", (DenseFeature("age"), DenseFeature("size")), (SparseFeature("a", 9),), 8)
    assert droppable(_found(age=1.0, size=1.0, a=-1.0), alone, 0.5) == []


def test_what_another_feature_is_computed_from_stays():
    crossed = replace(_SCHEMA, sparse=(*_SCHEMA.sparse, cross_of(("a", "b"))))
    found = _found(age=1.0, a=-0.2, b=-0.1, c=-0.05, a_x_b=1.0)
    assert droppable(found, crossed, 0.5) == [("c",)]
    # It leaves with what is computed from it, where that says nothing either, and where there is room for both.
    assert droppable(_found(age=1.0, a=-0.2, b=1.0, c=1.0, a_x_b=0.0), crossed, 0.5) == [("a", "a_x_b"), ("a_x_b",)]
    assert droppable(_found(a=-0.2, b=1.0, a_x_b=0.0), crossed, 0.5) == [("a_x_b",)]
    # A bucket that a trial adds brings the dense column back that it divides.
    trial = Trial("features", "features", Baseline(), Recipe(1e-3, 1, 64), ("age_bucket",), dropped=("age", "c"))
    whole = replace(_SCHEMA, sparse=(*_SCHEMA.sparse, replace(buckets_of("age"), name="age_bucket")))
    assert trial.schema(_SCHEMA, whole).feature_names == ["a", "b", "age_bucket"]
    assert [feature.name for feature in trial.schema(_SCHEMA, whole).dense] == ["age"]
    plain = replace(trial, features=())
    assert not plain.schema(_SCHEMA, whole).dense and plain.schema(_SCHEMA, whole).feature_names == ["a", "b"]


def test_a_trial_keeps_its_dropped_columns_and_differs_by_them():
    trial = Trial("features", "columns", Baseline(), Recipe(1e-3, 1, 64), dropped=("age",))
    assert Trial.from_dict(trial.to_dict()) == trial
    assert trial.configuration != replace(trial, dropped=()).configuration
    earlier = trial.to_dict()
    del earlier["dropped"]
    assert Trial.from_dict(earlier) == replace(trial, dropped=())
    assert columns_text(("a_x_b",), ("age", "c")) == "a_x_b; without age, c"
    assert columns_text((), ("age",)) == "without age" and columns_text((), ()) == ""


def test_a_model_without_a_column_reads_the_whole_data_set(data: Path, tmp_path: Path):
    rows = RaceData((data,), load_schema(data))
    trial = Trial("features", "columns", Baseline("dlrm", (64, 8), (64, 1)), Recipe(1e-2, 1, 128), dropped=("shop",))
    with process_group() as device:
        train_trial(trial, 1, rows, tmp_path / "run", device, lambda *_: False)
        train_trial(replace(trial, dropped=()), 1, rows, tmp_path / "all", device, lambda *_: False)
    files = rows.open("test", trial)
    assert files.schema.feature_names == ["user", "item"] and files.digest == open_split(data, "test").digest
    found = evaluate(tmp_path / "run", data)
    assert found.log_loss == pytest.approx(click_metrics(*predict(tmp_path / "run", files)).log_loss, abs=1e-7)
    with pytest.raises(ValueError, match=r"ensemble_with: .*/run reads other columns than .*/all: .*shop"):
        inference.export(tmp_path / "all", tmp_path / "package", data=data, ensemble_with=[tmp_path / "run"])
    assert not (tmp_path / "package").exists()


def test_a_race_tries_models_without_columns_that_say_nothing(data: Path, tmp_path: Path, monkeypatch):
    loads: list[Path] = []

    def load(folder: Path) -> tuple[ModelDescription, ClickModel]:
        loads.append(folder)
        if len(loads) == 1:
            raise ValueError("the checkpoint cannot be read: another worker has replaced it")
        return load_model(folder)

    monkeypatch.setattr("nasrec_torchrec.search.race.column_choice.load_model", load)
    config = RaceConfig(trials=8, epochs=2, final_seeds=1, features=False, trees=False, quiet=True)
    results = auto(data, tmp_path / "out", config)
    assert results is not None
    tried = [trial["trial"] for trial in results["trials"] if trial["trial"]["source"] == "columns"]
    assert len(loads) == 2  # it looked again
    # The label is drawn for pairs of user and item; the shop says nothing.
    assert ["shop"] in [trial["dropped"] for trial in tried]
    assert {trial["phase"] for trial in tried} == {"features"}
    shown = [row for row in results["leaderboard"] if row["dropped"] == ["shop"]]
    assert shown and "without shop" in (tmp_path / "out" / "report.html").read_text()
    off = auto(data, tmp_path / "off", replace(config, drop_columns=False))
    assert off is not None and not any(trial["trial"]["dropped"] for trial in off["trials"])
