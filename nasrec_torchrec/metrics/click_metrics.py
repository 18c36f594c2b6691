"""Exact metrics of click predictions: AUC, log loss, normalized entropy."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_auroc

from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.datasets.row_weights import row_weights
from nasrec_torchrec.metrics.passes import evaluation_rows


@dataclass(frozen=True)
class ClickMetrics:
    """Metrics over a split.

    Where rows have weights, a row of weight 2 counts as two rows.

    Args:
        auc: exact area under the ROC curve; None if all labels are equal or a prediction is not a number.
        log_loss: mean binary cross-entropy in nats; infinite if a prediction is not a number.
        normalized_entropy: log loss divided by the log loss of always predicting the split's positive rate; None if
            all labels are equal.
        rows: number of rows, each counted once.
        centered_log_loss: log loss of the logits that :func:`centered` returns, which does not depend on how far the
            mean prediction is from the split's positive rate; None if all labels are equal or a logit is infinite.
    """

    auc: float | None
    log_loss: float
    normalized_entropy: float | None
    rows: int
    centered_log_loss: float | None = field(default=None, kw_only=True)


def click_metrics(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> ClickMetrics:
    """Computes exact metrics.

    Args:
        logits: logits ``(N,)``.
        labels: labels ``(N,)`` of 0 and 1.
        weights: weights ``(N,)`` of the rows, 0 or more; None if they count alike.

    Raises:
        ValueError: If all weights are 0.
    """
    logits, labels = logits.double().flatten(), labels.double().flatten()
    shares = weight_shares(weights)
    loss = float(F.binary_cross_entropy_with_logits(logits, labels, shares))
    if math.isnan(loss):
        return ClickMetrics(None, math.inf, None, labels.numel())
    rate = float(labels.mean() if shares is None else (labels * shares).mean())
    if not 0.0 < rate < 1.0:
        return ClickMetrics(None, loss, None, labels.numel())
    entropy = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
    probabilities = torch.sigmoid(logits)
    if shares is None:
        auc = float(binary_auroc(probabilities, labels.long()))
    else:
        auc = _weighted_auc(probabilities, labels, shares)
    shifted = None
    if bool(torch.isfinite(logits).all()):
        shifted = float(F.binary_cross_entropy_with_logits(centered(logits, labels, weights), labels, shares))
    return ClickMetrics(auc, loss, loss / entropy, labels.numel(), centered_log_loss=shifted)


# Newton's method doubles the correct digits with each step once it is close; the bracket halves until then.
_CENTERING_STEPS = 60


def centered(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Adds the constant to all logits with which their mean probability is the positive rate.

    What is left of the log loss is how well rows are told apart: a model neither gains nor loses by a click rate that
    differs from that of the rows it was trained on.

    Args:
        logits: finite logits ``(N,)``.
        labels: labels ``(N,)`` of 0 and 1.
        weights: weights ``(N,)`` of the rows, 0 or more; None if they count alike.

    Returns:
        Tensor: Logits ``(N,)`` in float64; as they were if all labels are equal, since no constant does then.
    """
    logits, labels, shares = logits.double().flatten(), labels.double().flatten(), weight_shares(weights)

    def mean(values: Tensor) -> float:
        return float(values.mean() if shares is None else (values * shares).mean())

    rate = mean(labels)
    if not 0.0 < rate < 1.0:
        return logits
    target = math.log(rate / (1 - rate))
    # With either end, all probabilities are on one side of the rate.
    low, high = target - float(logits.max()), target - float(logits.min())
    shift = min(max(0.0, low), high)
    for _ in range(_CENTERING_STEPS):
        probabilities = torch.sigmoid(logits + shift)
        error = mean(probabilities) - rate
        if abs(error) < 1e-12:
            break
        low, high = (low, shift) if error > 0 else (shift, high)
        slope = mean(probabilities * (1 - probabilities))
        step = shift - error / slope if slope > 0 else math.inf
        shift = step if low < step < high else (low + high) / 2
    return logits + shift


def weight_shares(weights: Tensor | None) -> Tensor | None:
    """Divides weights ``(N,)`` by their mean, so that a mean over rows times these is the weighted mean.

    Args:
        weights: weights of rows, 0 or more; None if the rows count alike.

    Returns:
        Tensor | None: The weights in float64; None for None.

    Raises:
        ValueError: If all weights are 0.
    """
    if weights is None:
        return None
    weights = weights.double().flatten()
    if weights.numel() and not bool((weights > 0).any()):
        raise ValueError(f"weights: expected one above 0, found 0 in all {weights.numel():,} rows")
    return weights / weights.mean()


def row_losses(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Computes the log loss ``(N,)`` of every row, in float64, so that their mean is the (weighted) mean.

    Args:
        logits: logits ``(N,)``.
        labels: labels ``(N,)`` of 0 and 1.
        weights: weights ``(N,)`` of the rows; None if they count alike.

    Raises:
        ValueError: If all weights are 0.
    """
    logits, labels = logits.double().flatten(), labels.double().flatten()
    return F.binary_cross_entropy_with_logits(logits, labels, weight_shares(weights), reduction="none")


def _weighted_auc(probabilities: Tensor, labels: Tensor, weights: Tensor) -> float:
    """Returns the share of pairs of a click and another row that are in order, by weight; a tie is half in order."""
    _, place = probabilities.unique(return_inverse=True)
    clicks, others = (torch.bincount(place, part * weights) for part in (labels, 1 - labels))
    below = others.cumsum(0) - others
    return float((clicks * (below + others / 2)).sum() / (clicks.sum() * others.sum()))


def block_losses(logits: Tensor, labels: Tensor, weights: Tensor | None = None, blocks: int = 64) -> list[float]:
    """Computes the log loss of each of so many consecutive blocks of rows.

    What two models lose in the same blocks tells a difference between them from chance, and a drift over time shows as
    blocks that disagree.

    Args:
        logits: logits ``(N,)`` in the order of the rows.
        labels: labels ``(N,)`` of 0 and 1.
        weights: weights ``(N,)`` of the rows; None if they count alike. The mean of equal blocks is then the weighted
            mean, and a block whose rows weigh little has a small loss.
        blocks: number of blocks, at most one for each row.

    Returns:
        list[float]: mean log loss of each block; empty if a prediction is not a number.
    """
    losses = row_losses(logits, labels, weights)
    if not torch.isfinite(losses).all():
        return []
    return [float(block.mean()) for block in losses.tensor_split(min(blocks, losses.numel()))]


def evaluate(model: nn.Module, files: ClickFiles, batch_size: int | None = None) -> ClickMetrics:
    """Computes exact metrics of an unsharded model over a split, in this process.

    Raises:
        ValueError: If the split has no rows.
    """
    return click_metrics(*predict(model, files, batch_size), row_weights(files))


@torch.no_grad()
def predict(model: nn.Module, files: ClickFiles, batch_size: int | None = None) -> tuple[Tensor, Tensor]:
    """Returns the logits ``(N,)`` of an unsharded model for the rows of a split, and their labels ``(N,)``.

    A model of T labels has logits ``(N, T)``, and the labels, NaN where one is not known, have the same shape.

    Args:
        model: the model.
        files: the split, with the columns that the model reads.
        batch_size: rows of a forward pass; unset, what the memory of this machine allows.

    Raises:
        ValueError: If the split has no rows.
    """
    if not len(files):
        raise ValueError(f"{files.files[0].parent}: the split has no rows to measure")
    model.eval()
    if batch_size is None:
        batch_size, _ = evaluation_rows(model, files.schema)
    logits, labels = [], []
    for batch in files.evaluation_batches(batch_size):
        logits.append(model(batch.dense_features, batch.sparse_features).squeeze(-1))
        labels.append(batch.labels)
    return torch.cat(logits), torch.cat(labels)
