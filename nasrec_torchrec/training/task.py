"""A click model with its loss, which a pipeline runs forward and backward."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrec.datasets.utils import Batch

from nasrec_torchrec.datasets.click_data import WeightedBatch
from nasrec_torchrec.training.config import TrainPrecision


class ClickTask(nn.Module):
    """Computes the mean binary cross-entropy of a model's logits.

    It replaces ``torchrec.models.dlrm.DLRMTrain``, with the same parameter names, and computes the loss in float32
    whatever the precision of the logits is.

    Args:
        model: model that returns logits ``(B, 1)`` for dense and sparse features.
        device: device of this rank.
        precision: ``bf16`` runs the model under autocast; weights and tables stay in float32.
    """

    # What is added to the logits of training rows, see ClickFiles.log_odds_added.
    log_odds_added = 0.0
    # By what the weights of training rows are divided: with their mean, the loss has the same scale as without weights.
    mean_weight = 1.0
    # Of the latest training step.
    batch: Batch
    loss: Tensor
    row_weights: Tensor | None

    def __init__(self, model: nn.Module, device: torch.device, precision: TrainPrecision = "fp32") -> None:
        super().__init__()
        self.model = model
        self._device_type, self._bf16 = device.type, precision == "bf16"

    def forward(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Computes the loss of a batch: of training rows with weights, the mean of weight times cross-entropy.

        Args:
            batch: batch of B rows.

        Returns:
            The loss, and ``(loss, logits, labels)`` without gradients, of shapes ``()``, ``(B,)`` and ``(B,)``.
        """
        with torch.autocast(self._device_type, torch.bfloat16, self._bf16):
            logits = self.model(batch.dense_features, batch.sparse_features).squeeze(-1)
        if self.training and self.log_odds_added:
            logits = logits + self.log_odds_added
        labels = batch.labels.float()
        weights = None
        if self.training and isinstance(batch, WeightedBatch):
            weights = batch.row_weights / self.mean_weight
        loss = F.binary_cross_entropy_with_logits(logits.float(), labels, weights)
        if self.training:
            self.batch, self.loss, self.row_weights = batch, loss.detach(), weights
        return loss, (loss.detach(), logits.detach(), labels.detach())
