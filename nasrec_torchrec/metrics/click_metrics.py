"""Exact metrics of click predictions: AUC, log loss, normalized entropy."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_auroc

from nasrec_torchrec.datasets.reader import ClickFiles


@dataclass(frozen=True)
class ClickMetrics:
    """Metrics over a split.

    Args:
        auc: exact area under the ROC curve; None if all labels are equal or a prediction is not a number.
        log_loss: mean binary cross-entropy in nats; infinite if a prediction is not a number.
        normalized_entropy: log loss divided by the log loss of always predicting the split's positive rate; None if
            all labels are equal.
        rows: number of rows.
    """

    auc: float | None
    log_loss: float
    normalized_entropy: float | None
    rows: int


def click_metrics(logits: Tensor, labels: Tensor) -> ClickMetrics:
    """Computes exact metrics of ``logits`` ``(N,)`` against ``labels`` ``(N,)`` of 0 and 1."""
    logits, labels = logits.double().flatten(), labels.double().flatten()
    loss = float(F.binary_cross_entropy_with_logits(logits, labels))
    if math.isnan(loss):
        return ClickMetrics(None, math.inf, None, labels.numel())
    rate = float(labels.mean())
    if not 0.0 < rate < 1.0:
        return ClickMetrics(None, loss, None, labels.numel())
    entropy = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
    auc = float(binary_auroc(torch.sigmoid(logits), labels.long()))
    return ClickMetrics(auc, loss, loss / entropy, labels.numel())


def block_losses(logits: Tensor, labels: Tensor, blocks: int = 64) -> list[float]:
    """Computes the log loss of each of so many consecutive blocks of rows.

    What two models lose in the same blocks tells a difference between them from chance, and a drift over time shows as
    blocks that disagree.

    Args:
        logits: logits ``(N,)`` in the order of the rows.
        labels: labels ``(N,)`` of 0 and 1.
        blocks: number of blocks, at most one for each row.

    Returns:
        list[float]: mean log loss of each block; empty if a prediction is not a number.
    """
    logits, labels = logits.double().flatten(), labels.double().flatten()
    losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    if not torch.isfinite(losses).all():
        return []
    return [float(block.mean()) for block in losses.tensor_split(min(blocks, losses.numel()))]


def evaluate(model: nn.Module, files: ClickFiles, batch_size: int = 4096) -> ClickMetrics:
    """Computes exact metrics of an unsharded model over a split, in this process.

    Raises:
        ValueError: If the split has no rows.
    """
    return click_metrics(*predict(model, files, batch_size))


@torch.no_grad()
def predict(model: nn.Module, files: ClickFiles, batch_size: int = 4096) -> tuple[Tensor, Tensor]:
    """Returns the logits ``(N,)`` of an unsharded model for the rows of a split, and their labels ``(N,)``.

    Raises:
        ValueError: If the split has no rows.
    """
    if not len(files):
        raise ValueError(f"{files.files[0].parent}: the split has no rows to measure")
    model.eval()
    logits, labels = [], []
    for batch in files.evaluation_batches(batch_size):
        logits.append(model(batch.dense_features, batch.sparse_features).flatten())
        labels.append(batch.labels)
    return torch.cat(logits), torch.cat(labels)
