import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nasrec_torchrec.metrics.click_metrics import centered, click_metrics


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 1)), min_size=2, max_size=40))
def test_auc_and_log_loss_are_exact(rows):
    logits = torch.tensor([float(logit) for logit, _ in rows])
    labels = torch.tensor([float(label) for _, label in rows])
    metrics = click_metrics(logits, labels)
    positive, negative = logits[labels == 1].tolist(), logits[labels == 0].tolist()
    if positive and negative:
        wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
        assert metrics.auc == pytest.approx(wins / (len(positive) * len(negative)), abs=1e-6)
        rate = len(positive) / len(rows)
        entropy = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
        assert metrics.normalized_entropy == pytest.approx(metrics.log_loss / entropy)
    else:
        assert metrics.auc is None and metrics.normalized_entropy is None
    losses = [math.log1p(math.exp(-logit if label else logit)) for logit, label in rows]
    assert metrics.log_loss == pytest.approx(sum(losses) / len(losses))
    assert metrics.rows == len(rows)


@given(
    st.lists(st.tuples(st.floats(-30, 30, width=32), st.integers(0, 1), st.integers(0, 3)), min_size=2, max_size=40),
    st.floats(-20, 20),
)
def test_the_centered_log_loss_does_not_depend_on_the_mean_prediction(rows, shift):
    logits, labels, weights = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    labels[:2], weights[:2] = torch.tensor([0.0, 1.0]), 1.0
    metrics, shifted = (click_metrics(rows, labels, weights) for rows in (logits, logits + shift))
    assert shifted.centered_log_loss == pytest.approx(metrics.centered_log_loss, rel=1e-6, abs=1e-9)
    assert metrics.centered_log_loss <= metrics.log_loss + 1e-9
    # The mean prediction is the positive rate, and rows stay as far apart as they were.
    moved = centered(logits, labels, weights)
    assert float((moved.sigmoid() - labels) @ weights) == pytest.approx(0.0, abs=1e-6)
    torch.testing.assert_close(moved - logits, (moved - logits)[:1].expand(len(rows)))


def test_what_cannot_be_centered_has_no_such_loss():
    assert click_metrics(torch.tensor([0.5, 1.0]), torch.ones(2)).centered_log_loss is None
    assert centered(torch.tensor([0.5, 1.0]), torch.ones(2)).tolist() == [0.5, 1.0]
    assert click_metrics(torch.tensor([math.inf, 1.0]), torch.tensor([1.0, 0.0])).centered_log_loss is None


def test_a_prediction_that_is_not_a_number_is_infinitely_bad():
    metrics = click_metrics(torch.tensor([0.5, math.nan]), torch.tensor([1.0, 0.0]))
    assert metrics.auc is None and metrics.log_loss == math.inf
