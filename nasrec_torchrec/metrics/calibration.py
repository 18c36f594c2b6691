"""Whether predicted probabilities are what is observed: expected calibration error, and calibration by decile."""

from dataclasses import dataclass

import torch
from torch import Tensor

DECILES = 10


@dataclass(frozen=True)
class Bin:
    """Rows with neighbouring predictions.

    Args:
        rows: number of rows.
        prediction: mean predicted probability.
        click_rate: share of these rows that are clicks.
    """

    rows: int
    prediction: float
    click_rate: float


@dataclass(frozen=True)
class Calibration:
    """How far predicted probabilities are from click rates. Where rows have weights, all means are weighted.

    Args:
        click_rate: share of all rows that are clicks.
        prediction: mean predicted probability of all rows.
        expected_error: expected calibration error (ECE), the mean over all rows of the distance between the mean
            prediction and the click rate of the row's decile.
        deciles: rows in ten equal parts by their prediction, the lowest first; fewer parts if there are fewer rows.
    """

    click_rate: float
    prediction: float
    expected_error: float
    deciles: tuple[Bin, ...]

    @property
    def ratio(self) -> float | None:
        """The mean prediction divided by the click rate, 1 if calibrated in all; None without clicks."""
        return self.prediction / self.click_rate if self.click_rate else None


def calibration(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Calibration:
    """Compares the probabilities of ``logits`` ``(N,)`` with ``labels`` ``(N,)`` of 0 and 1.

    Args:
        logits: predictions.
        labels: 0 or 1.
        weights: weights ``(N,)`` of the rows; None if they count alike.
    """
    order = logits.flatten().argsort(stable=True)
    probabilities, labels = logits.double().flatten().sigmoid()[order], labels.double().flatten()[order]
    if weights is not None:
        return _weighted(probabilities, labels, weights.double().flatten()[order])
    parts = zip(probabilities.tensor_split(DECILES), labels.tensor_split(DECILES), strict=True)
    deciles = tuple(Bin(len(part), float(part.mean()), float(clicks.mean())) for part, clicks in parts if len(part))
    error = sum(part.rows * abs(part.prediction - part.click_rate) for part in deciles) / max(1, labels.numel())
    return Calibration(float(labels.mean()), float(probabilities.mean()), error, deciles)


def _weighted(probabilities: Tensor, labels: Tensor, weights: Tensor) -> Calibration:
    parts = zip(*(rows.tensor_split(DECILES) for rows in (probabilities, labels, weights)), strict=True)
    deciles, error = [], 0.0
    for part, clicks, heavy in parts:
        if not len(part) or not bool(heavy.any()):
            continue  # of rows that count nothing there is no mean
        deciles.append(Bin(len(part), _mean(part, heavy), _mean(clicks, heavy)))
        error += float(heavy.sum() / weights.sum()) * abs(deciles[-1].prediction - deciles[-1].click_rate)
    return Calibration(_mean(labels, weights), _mean(probabilities, weights), error, tuple(deciles))


def _mean(values: Tensor, weights: Tensor) -> float:
    return float((values * weights).sum() / weights.sum())


def confidence(auc: float, clicks: float, rows: float) -> float:
    """Returns half the width of a 95 % interval of an AUC over rows, by Hanley and McNeil (1982)."""
    others = rows - clicks
    one, two = auc / (2 - auc), 2 * auc * auc / (1 + auc)
    variance = auc * (1 - auc) + (clicks - 1) * (one - auc * auc) + (others - 1) * (two - auc * auc)
    return 1.96 * float(torch.tensor(max(0.0, variance) / max(1, clicks * others)).sqrt())
