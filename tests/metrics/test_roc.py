"""The ROC curve beside scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.metrics import auc
from sklearn.metrics import roc_curve as reference

from nasrec_torchrec.metrics.roc import roc_curve


@pytest.mark.parametrize("weighted", [False, True])
def test_the_points_lie_on_the_curve_and_keep_its_area(weighted: bool):
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(5000, generator=generator) < 0.2).float()
    logits = ((labels + torch.randn(5000, generator=generator)) * 20).round() / 20  # with ties
    weights = torch.rand(5000, generator=generator) if weighted else None
    x, y = map(np.array, zip(*roc_curve(logits, labels, weights), strict=True))
    others, clicks, _ = reference(labels, logits, sample_weight=weights, drop_intermediate=False)
    assert len(x) <= 64 and (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    for point in zip(x, y, strict=True):
        assert np.hypot(others - point[0], clicks - point[1]).min() < 1e-6
    assert auc(x, y) == pytest.approx(auc(others, clicks), abs=1e-3)


def test_there_is_no_curve_of_one_label_or_of_predictions_that_are_no_numbers():
    assert roc_curve(torch.zeros(3), torch.ones(3)) == ()
    assert roc_curve(torch.tensor([0.0, float("nan")]), torch.tensor([0.0, 1.0])) == ()
    # All rows of one prediction pass a threshold together.
    assert roc_curve(torch.zeros(4), torch.tensor([0.0, 1.0, 0.0, 1.0])) == ((0.0, 0.0), (1.0, 1.0))
