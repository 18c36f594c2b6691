import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score

from nasrec_torchrec.metrics.calibration import calibration, confidence


def _sample(count: int, bias: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, generator=generator) - 1
    labels = (torch.rand(count, generator=generator) < logits.sigmoid()).float()
    return logits + bias, labels


def test_deciles_are_those_of_scikit_learn():
    logits, labels = _sample(1000, bias=0.7)
    found = calibration(logits, labels)
    rates, predictions = calibration_curve(labels, logits.double().sigmoid(), n_bins=10, strategy="quantile")
    assert [part.rows for part in found.deciles] == [100] * 10
    np.testing.assert_allclose([part.click_rate for part in found.deciles], rates)
    np.testing.assert_allclose([part.prediction for part in found.deciles], predictions)
    assert found.expected_error == pytest.approx(np.abs(rates - predictions).mean())
    assert found.click_rate == pytest.approx(float(labels.mean())) and found.ratio > 1.2


def test_a_calibrated_model_has_a_small_error_and_a_ratio_of_one():
    found = calibration(*_sample(100_000))
    assert found.expected_error < 0.01 and found.ratio == pytest.approx(1, abs=0.02)


def test_fewer_rows_than_deciles_and_no_clicks():
    found = calibration(torch.tensor([0.0, 1.0, -1.0]), torch.zeros(3))
    assert [part.rows for part in found.deciles] == [1, 1, 1] and found.ratio is None


def test_the_interval_of_an_auc_holds_what_resampling_rows_gives():
    logits, labels = _sample(2000)
    rng = np.random.default_rng(0)
    aucs = []
    for _ in range(300):
        rows = rng.integers(0, len(labels), len(labels))
        aucs.append(roc_auc_score(labels[rows], logits[rows]))
    auc = roc_auc_score(labels, logits)
    assert confidence(auc, int(labels.sum()), len(labels)) == pytest.approx(1.96 * np.std(aucs), rel=0.15)
