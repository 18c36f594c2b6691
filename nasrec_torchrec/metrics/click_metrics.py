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
    """Quality over a split.

    Args:
        auc: area under the ROC curve, exact; NaN when all labels are equal.
        log_loss: mean binary cross-entropy in nats.
        normalized_entropy: log loss divided by that of always predicting the split's positive rate.
        rows: rows counted.
    """

    auc: float
    log_loss: float
    normalized_entropy: float
    rows: int


def click_metrics(logits: Tensor, labels: Tensor) -> ClickMetrics:
    """Exact metrics of ``logits`` ``(N,)`` against ``labels`` ``(N,)`` of 0 and 1."""
    logits, labels = logits.double().flatten(), labels.double().flatten()
    loss = float(F.binary_cross_entropy_with_logits(logits, labels))
    rate = float(labels.mean())
    mixed = 0.0 < rate < 1.0
    entropy = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate)) if mixed else math.nan
    auc = float(binary_auroc(torch.sigmoid(logits), labels.long())) if mixed else math.nan
    return ClickMetrics(auc, loss, loss / entropy, labels.numel())


@torch.no_grad()
def evaluate(model: nn.Module, files: ClickFiles, batch_size: int = 4096) -> ClickMetrics:
    """Exact metrics of an unsharded model over a split, in this process."""
    model.eval()
    logits, labels = [], []
    for batch in files.evaluation_batches(batch_size):
        logits.append(model(batch.dense_features, batch.sparse_features).flatten())
        labels.append(batch.labels)
    return click_metrics(torch.cat(logits), torch.cat(labels))
