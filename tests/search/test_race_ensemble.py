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
        3: torch.tensor([-2.0, 1.0, 2.0, 1.0]),
        5: torch.tensor([1.0, -2.0, 1.0, 2.0]),
        8: torch.tensor([-2.0, 1.0, 2.0, 1.0]),  # as the first one
        9: torch.tensor([4.0, 4.0, -4.0, -4.0]),
    }
    assert select(logits, _LABELS, 3, 4) == [3, 5]
    assert select(logits, _LABELS, 3, 1) == [3]
    assert select({3: logits[3], 9: logits[9]}, _LABELS, 3, 4) == [3]
    # The one that lowers the loss most comes first.
    better = torch.tensor([-1.0, -3.0, 1.0, 2.0])
    assert select(logits | {10: better}, _LABELS, 3, 2) == [3, 10]


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
