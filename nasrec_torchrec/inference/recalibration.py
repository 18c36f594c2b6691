"""Recalibration: a map from a model's logits to logits whose probabilities are what is observed.

It is fitted once, on rows that the model was not trained on, and exported as a part of the model.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasrec_torchrec.inference.config import Calibration
from nasrec_torchrec.metrics.calibration import calibration
from nasrec_torchrec.metrics.click_metrics import weight_shares

# Rows of the rarer label below which a fitted curve follows chance.
_FEWEST = {"platt": 100, "isotonic": 1000}


@dataclass(frozen=True)
class Recalibration:
    """A fitted map of logits.

    Args:
        method: ``platt`` is slope x logit + intercept (Platt, 1999); ``isotonic`` is the increasing function that fits
            best, linear between its points and constant beyond them.
        rows: number of rows that it was fitted on.
        rarer: number of them with the rarer label.
        error_before: expected calibration error of the logits on these rows.
        error_after: the same afterwards.
        parameters: slope and intercept, or the points: ``logits`` in increasing order and ``calibrated``.
    """

    method: Calibration
    rows: int
    rarer: int
    error_before: float
    error_after: float
    parameters: dict[str, tuple[float, ...]]

    def module(self) -> nn.Module:
        """Returns the map as a part of a model."""
        values = {name: torch.tensor(numbers, dtype=torch.float32) for name, numbers in self.parameters.items()}
        return Line(**values) if self.method == "platt" else Steps(**values)

    def __str__(self) -> str:
        few = self.rarer < _FEWEST[self.method]
        other = "; platt needs fewer" if few and self.method == "isotonic" else ""
        caution = f"; {self.rarer:,} rows of the rarer label are few for it{other}" if few else ""
        return (
            f"calibrated by {self.method} on {self.rows:,} validation rows: expected calibration error "
            f"{self.error_before:.4f} before and {self.error_after:.4f} after, on these rows{caution}"
        )


class Line(nn.Module):
    """A line through logits.

    Args:
        slope: its slope, ``(1,)``.
        intercept: its value at 0, ``(1,)``.
    """

    slope: Tensor
    intercept: Tensor

    def __init__(self, slope: Tensor, intercept: Tensor) -> None:
        super().__init__()
        self.register_buffer("slope", slope)
        self.register_buffer("intercept", intercept)

    def forward(self, logits: Tensor) -> Tensor:
        """``(B,)`` to ``(B,)``."""
        return logits * self.slope + self.intercept


class Steps(nn.Module):
    """An increasing function that is linear between points and constant beyond them.

    Args:
        logits: where the points are, ``(P,)``, increasing, two or more.
        calibrated: the values there, ``(P,)``.
    """

    logits: Tensor
    calibrated: Tensor

    def __init__(self, logits: Tensor, calibrated: Tensor) -> None:
        super().__init__()
        self.register_buffer("logits", logits)
        self.register_buffer("calibrated", calibrated)

    def forward(self, logits: Tensor) -> Tensor:
        """``(B,)`` to ``(B,)``."""
        right = torch.bucketize(logits, self.logits).clamp(1, self.logits.shape[0] - 1)
        start, end = self.logits[right - 1], self.logits[right]
        share = ((logits - start) / (end - start)).clamp(0, 1)
        low = self.calibrated[right - 1]
        return low + share * (self.calibrated[right] - low)


def recalibrate(method: Calibration, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Recalibration:
    """Fits a map to rows that the model was not trained on.

    Args:
        method: kind of the map.
        logits: logits ``(N,)``.
        labels: labels ``(N,)`` of 0 and 1.
        weights: weights ``(N,)`` of the rows; None if they count alike.

    Raises:
        ValueError: If all labels are equal, ``platt`` would reverse the ranking, or ``isotonic`` lacks the library that
            fits it.
    """
    logits, labels = logits.float().flatten(), labels.double().flatten()
    clicks = int(labels.sum())
    rarer = min(clicks, len(labels) - clicks)
    if not rarer:
        raise ValueError(
            f"calibrate: expected rows with and without a click, found {clicks:,} clicks in {len(labels):,}"
        )
    counts = weight_shares(weights)
    parameters = _platt(logits, labels, counts) if method == "platt" else _isotonic(logits, labels, counts)
    before = calibration(logits, labels, weights).expected_error
    found = Recalibration(method, len(labels), rarer, before, 0.0, parameters)
    after = calibration(found.module()(logits), labels, weights).expected_error
    return Recalibration(method, len(labels), rarer, before, after, parameters)


def _platt(logits: Tensor, labels: Tensor, counts: Tensor | None) -> dict[str, tuple[float, ...]]:
    clicks = float(labels.sum() if counts is None else (labels * counts).sum())
    others = len(labels) - clicks
    # Platt's targets keep the slope finite where the labels can be separated.
    targets = torch.where(labels == 1, (clicks + 1) / (clicks + 2), 1 / (others + 2))
    line = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([line], max_iter=100, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.binary_cross_entropy_with_logits(logits.double() * line[0] + line[1], targets, counts)
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    slope, intercept = line.tolist()
    if slope <= 0:
        raise ValueError(
            f"calibrate: higher logits have fewer clicks on these rows (slope {slope:.3f}): the model ranks them no "
            "better than chance, which no calibration corrects"
        )
    return {"slope": (slope,), "intercept": (intercept,)}


def _isotonic(logits: Tensor, labels: Tensor, counts: Tensor | None) -> dict[str, tuple[float, ...]]:
    try:
        from scipy.optimize import isotonic_regression
    except ImportError:
        raise ValueError("calibrate: isotonic needs SciPy: pip install 'nasrec-torchrec[calibration]'") from None
    if counts is not None:  # rows of weight 0 count nothing
        logits, labels, counts = (rows[counts > 0] for rows in (logits, labels, counts))
    # Rows with equal logits get one probability.
    places, group = logits.unique(return_inverse=True)
    rows = torch.bincount(group, counts)
    rates = torch.bincount(group, labels if counts is None else labels * counts) / rows
    found = isotonic_regression(rates.numpy(), weights=rows.double().numpy())
    starts, ends = found.blocks[:-1], found.blocks[1:] - 1
    size = np.add.reduceat(rows.numpy(), starts)
    fitted = found.x[starts]
    # A block of n rows without a click, or with nothing else, does not say that there never is one.
    least = 1 / (size[0] + 2) if fitted[0] == 0 else 0.0
    most = 1 - 1 / (size[-1] + 2) if fitted[-1] == 1 else 1.0
    values = torch.logit(torch.from_numpy(np.clip(fitted, least, most)))
    edges = dict(zip(places[starts].tolist(), values.tolist(), strict=True))
    edges |= dict(zip(places[ends].tolist(), values.tolist(), strict=True))
    known = sorted(edges)
    if len(known) == 1:
        edges[known[0] + 1] = edges[known[0]]
        known.append(known[0] + 1)
    return {"logits": tuple(known), "calibrated": tuple(edges[place] for place in known)}
