"""The ROC curve: which share of the clicks is found among how many of the other rows, at every threshold."""

import torch
from torch import Tensor

_POINTS = 64


def roc_curve(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, points: int = _POINTS
) -> tuple[tuple[float, float], ...]:
    """Returns points of the ROC curve of ``logits`` ``(N,)`` against ``labels`` ``(N,)`` of 0 and 1.

    Args:
        logits: predictions.
        labels: 0 or 1.
        weights: weights ``(N,)`` of the rows; None if they count alike.
        points: number of points at most, about equally far from each other along the curve.

    Returns:
        Shares of the other rows and of the clicks above a threshold, from (0, 0) to (1, 1); empty if all labels are
        equal or a prediction is not a number.
    """
    logits, labels = logits.double().flatten(), labels.double().flatten()
    heavy = torch.ones_like(labels) if weights is None else weights.double().flatten()
    order = logits.argsort(descending=True, stable=True)
    clicks, others = ((part * heavy)[order].cumsum(0) for part in (labels, 1 - labels))
    if not torch.isfinite(logits).all() or not len(logits) or min(float(clicks[-1]), float(others[-1])) <= 0:
        return ()
    # Rows of the same prediction pass a threshold together.
    last = torch.cat([logits[order].diff() != 0, torch.tensor([True])])
    curve = torch.stack([others[last] / others[-1], clicks[last] / clicks[-1]])
    along = curve.sum(0)
    kept = torch.searchsorted(along, torch.linspace(0, 2, points - 1, dtype=torch.float64)[1:])
    chosen = curve[:, kept.clamp(max=len(along) - 1).unique()].T.tolist()
    return ((0.0, 0.0), *((float(x), float(y)) for x, y in chosen))
