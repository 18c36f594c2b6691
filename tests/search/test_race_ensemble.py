"""Models of a race that predict better together."""

import pytest
import torch

from nasrec_torchrec.models.config import Baseline
from nasrec_torchrec.search.race.ensemble import candidates, select
from nasrec_torchrec.search.race.recipe import Recipe
from nasrec_torchrec.search.race.trial import Entry, Trial

_LABELS = torch.tensor([0.0, 0.0, 1.0, 1.0])


def test_models_whose_errors_differ_join_and_those_that_do_not_help_stay_out():
    logits = {
        "a": torch.tensor([-2.0, 1.0, 2.0, 1.0]),
        "b": torch.tensor([1.0, -2.0, 1.0, 2.0]),
        "c": torch.tensor([-2.0, 1.0, 2.0, 1.0]),  # as the first one
        "d": torch.tensor([4.0, 4.0, -4.0, -4.0]),
    }
    assert select(logits, _LABELS, "a", 4) == ["a", "b"]
    assert select(logits, _LABELS, "a", 1) == ["a"]
    assert select({"a": logits["a"], "d": logits["d"]}, _LABELS, "a", 4) == ["a"]
    # The one that lowers the loss most comes first.
    better = torch.tensor([-1.0, -3.0, 1.0, 2.0])
    assert select(logits | {"e": better}, _LABELS, "a", 2) == ["a", "e"]


def test_a_model_that_only_moves_the_mean_does_not_join_where_the_click_rate_drifts():
    logits = {"a": torch.tensor([0.0, 1.0, 2.0, 1.0]), "b": torch.tensor([-2.0, -1.0, 0.0, -1.0])}
    assert select(logits, _LABELS, "a", 2) == ["a", "b"]
    assert select(logits, _LABELS, "a", 2, center=True) == ["a"]


def test_only_models_of_the_same_columns_can_be_one_package():
    trial = Trial("features", "baseline", Baseline(), Recipe(1e-3, 1, 64), ("a_x_b",), 0, ("age",))
    same = Entry(1, trial, (0.5,))
    best = Entry(0, trial, (0.4,))
    entries = [
        best,
        same,
        Entry(2, Trial("features", "baseline", Baseline(), Recipe(1e-3, 1, 64), ("a_x_b",)), (0.3,)),
        Entry(3, trial),
    ]
    assert candidates(best, entries) == [same]
    assert same.loss == pytest.approx(0.5)


def test_models_that_are_as_sure_as_can_be_are_compared_too():
    sure = {"a": torch.tensor([-60.0, 80.0, 90.0, 50.0]), "b": torch.tensor([70.0, -90.0, 60.0, 80.0])}
    assert select(sure, _LABELS, "a", 2) == select(sure, _LABELS, "a", 2, center=True) == ["a", "b"]
