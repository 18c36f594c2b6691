"""Exact metrics over all rows of a split, and TorchRec's windowed ones while training."""

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_auroc
from torchrec.metrics.metric_module import RecMetricModule, generate_metric_module
from torchrec.metrics.metrics_config import (
    DefaultTaskInfo,
    MetricsConfig,
    RecMetricDef,
    RecMetricEnum,
    ThroughputDef,
)

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


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenates equally many rows of every rank, in rank order, on every rank."""
    gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, rows.contiguous())
    return torch.cat(gathered)


def windowed_metrics(batch_size: int, device: torch.device) -> RecMetricModule:
    """TorchRec's NE and AUC over a sliding window of training rows.

    Args:
        batch_size: rows per rank and step.
        device: where their state lives.
    """
    window = RecMetricDef(rec_tasks=[DefaultTaskInfo], window_size=100 * batch_size * dist.get_world_size())
    config = MetricsConfig(
        rec_tasks=[DefaultTaskInfo],
        rec_metrics={RecMetricEnum.NE: window, RecMetricEnum.AUC: window},
        throughput_metric=ThroughputDef(),
        state_metrics=[],
    )
    return generate_metric_module(
        RecMetricModule,
        metrics_config=config,
        batch_size=batch_size,
        world_size=dist.get_world_size(),
        my_rank=dist.get_rank(),
        state_metrics_mapping={},
        device=device,
    )


@torch.no_grad()
def evaluate(model: nn.Module, files: ClickFiles, batch_size: int = 4096) -> ClickMetrics:
    """Exact metrics of an unsharded model over a split, in this process."""
    model.eval()
    logits, labels = [], []
    for batch in files.evaluation_batches(batch_size):
        logits.append(model(batch.dense_features, batch.sparse_features).flatten())
        labels.append(batch.labels)
    return click_metrics(torch.cat(logits), torch.cat(labels))
