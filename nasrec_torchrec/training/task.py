"""A click model with its loss, which a pipeline runs forward and backward."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrec.datasets.utils import Batch

from nasrec_torchrec.datasets.click_data import WeightedBatch
from nasrec_torchrec.modules.sparse_arch import SparseArch
from nasrec_torchrec.training.config import TrainPrecision
from nasrec_torchrec.training.guard import StepGuard


@dataclass(frozen=True)
class MicroBatches:
    """How a task divides a batch.

    Args:
        count: number of parts of the rows.
        guard: guard that keeps the gradients of the embedded features until the whole batch has them.
    """

    count: int
    guard: StepGuard


class ClickTask(nn.Module):
    """Computes the mean binary cross-entropy of a model's logits.

    It replaces ``torchrec.models.dlrm.DLRMTrain``, with the same parameter names, and computes the loss in float32
    whatever the precision of the logits is.

    Args:
        model: model that returns logits ``(B, T)`` of T labels for dense and sparse features, and calls its
            ``sparse_arch`` once.
        device: device of this rank.
        precision: ``bf16`` runs the model under autocast; weights and tables stay in float32.
        micro_batches: how a training step divides its rows; None takes them at once.
    """

    # What is added to the logits of training rows, see ClickFiles.log_odds_added.
    log_odds_added = 0.0
    # By what the weights of training rows are divided: with their mean, the loss has the same scale as without weights.
    mean_weight = 1.0
    # Of several labels, by what the mean loss of each over the rows, 0 where it is not known, is multiplied.
    label_scales: Sequence[float] = ()
    # Of the latest training step.
    batch: Batch
    loss: Tensor
    row_weights: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        precision: TrainPrecision = "fp32",
        micro_batches: MicroBatches | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self._device_type, self._bf16 = device.type, precision == "bf16"
        self._micro_batches = micro_batches

    def forward(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Computes the loss of a batch: of training rows with weights, the mean of weight times cross-entropy.

        Args:
            batch: batch of B rows. Of several labels, those that are NaN take no part in the loss.

        Returns:
            The loss, and ``(loss, logits, labels)`` without gradients, of shapes ``()``, ``(B,)`` and ``(B,)``, or
            ``(B, T)`` for several labels.
        """
        labels, weights = batch.labels.float(), None
        if self.training and isinstance(batch, WeightedBatch):
            weights = batch.row_weights / self.mean_weight
        # A pipeline traces the plain pass, to see what the tables read.
        if self.training and self._micro_batches is not None and isinstance(batch, Batch):
            loss, logits = self._in_parts(self._micro_batches, batch, labels, weights)
        else:
            logits = self._logits(batch.dense_features, batch.sparse_features)
            loss = self._loss(logits, labels, weights)
        if self.training:
            self.batch, self.loss, self.row_weights = batch, loss.detach(), weights
        return loss, (loss.detach(), logits.detach(), labels.detach())

    def _logits(self, dense_features: Tensor, sparse_features: object) -> Tensor:
        with torch.autocast(self._device_type, torch.bfloat16, self._bf16):
            logits: Tensor = self.model(dense_features, sparse_features).squeeze(-1)
        if self.training and self.log_odds_added:
            logits = logits + self.log_odds_added
        return logits

    def _loss(self, logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        if len(self.label_scales) < 2:  # not by the labels: a pipeline traces this
            return F.binary_cross_entropy_with_logits(logits.float(), labels, weights)
        known = ~labels.isnan()
        losses = F.binary_cross_entropy_with_logits(logits.float(), labels.where(known, 0), reduction="none") * known
        if weights is not None:
            losses = losses * weights.unsqueeze(1)
        return (losses.mean(0) * losses.new_tensor(self.label_scales)).sum()

    def _in_parts(
        self, parts: MicroBatches, batch: Batch, labels: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Looks the whole batch up, and then runs each part forward and backward, which frees its activations.

        Returns:
            The loss, as a leaf that a pipeline can run backward without effect, and the logits.
        """
        arch = self.model.sparse_arch
        assert isinstance(arch, nn.Module)
        if isinstance(arch, SparseArch):
            arch.check(batch.sparse_features)
        embedded = parts.guard.hold_parts(arch(batch.sparse_features), parts.count)
        loss, found = labels.new_zeros(()), []
        ends = accumulate((len(part) for part in embedded), initial=0)
        for part, (first, last) in zip(embedded, pairwise(ends), strict=True):
            with _answering(arch, part):
                logits = self._logits(batch.dense_features[first:last], None)
            of_rows = None if weights is None else weights[first:last]
            # Its share of the mean over the batch.
            share = self._loss(logits, labels[first:last], of_rows) * ((last - first) / len(labels))
            share.backward()
            loss += share.detach()
            found.append(logits.detach())
        return loss.requires_grad_(), torch.cat(found)


@contextmanager
def _answering(module: nn.Module, output: Tensor) -> Iterator[None]:
    """Lets a module return a tensor instead of what it computes, as a pipeline lets sharded tables do."""
    computes = module.__dict__.get("forward")
    module.forward = lambda _: output
    try:
        yield
    finally:
        if computes is None:
            del module.forward
        else:
            module.forward = computes
