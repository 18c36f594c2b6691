"""What a training measures of its own steps: loss, metrics, throughput and memory."""

import math
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torchrec.datasets.utils import Batch

from nasrec_torchrec.metrics.windowed import WindowedMetrics
from nasrec_torchrec.training.config import TrainConfig

# Rows whose loss is compared with that of their click rate.
_FEWEST_ROWS = 1000


class StepMeter:
    """What a training logs of its steps, in windows of an epoch.

    Args:
        config: training configuration.
        world_size: number of ranks.
        device: device of this rank.
        step: step at which the epoch begins.
        labels: names of the labels; of further ones than the first, metrics in the window are logged too.
    """

    def __init__(
        self, config: TrainConfig, world_size: int, device: torch.device, step: int, labels: Sequence[str] = ("label",)
    ) -> None:
        self._batch_size, self._world_size, self._device = config.batch_size, world_size, device
        self._windowed = {name: WindowedMetrics(config.batch_size // world_size, device) for name in labels}
        self._read_at, self._read_step = time.monotonic(), step
        # The sum of the losses, the clicks and the rows since the last reading of `recent_entropy`.
        self._recent = torch.zeros(3, device=device)

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> None:
        """Takes in this rank's rows of a step, their mean loss, and their weights if they have some."""
        if labels.dim() == 2:
            self._update_further(logits, labels, weights)
            logits, labels = logits[:, 0], labels[:, 0]
            loss = F.binary_cross_entropy_with_logits(logits.float(), labels, weights)
        clicks, rows = labels.sum(), loss.new_tensor(len(labels))
        if weights is not None:
            clicks, rows = (labels * weights).sum(), weights.sum()
        sums = torch.stack([loss.detach() * len(labels), clicks, rows])
        self._recent += sums.where(loss.isfinite(), torch.zeros_like(sums))  # others are skipped and counted elsewhere
        next(iter(self._windowed.values())).update(logits, labels, weights)

    def _update_further(self, logits: Tensor, labels: Tensor, weights: Tensor | None) -> None:
        """Takes in all labels ``(B, T)`` but the first; rows whose label is not known have no weight."""
        for place, windowed in enumerate(self._windowed.values()):
            if place:
                known = ~labels[:, place].isnan()
                of_rows = known.to(labels.dtype) if weights is None else weights * known
                windowed.update(logits[:, place], labels[:, place].where(known, 0), of_rows)

    def read(self, loss: Tensor, step: int, waited: float) -> dict[str, Any]:
        """Returns the values over all ranks since the last call, those of further labels by name in ``tasks``.

        This call is collective.

        Args:
            loss: mean loss of this rank's rows in the last step.
            step: number of steps so far.
            waited: seconds since the last call in which this rank waited for batches.
        """
        mean_loss = loss.clone()
        dist.all_reduce(mean_loss)
        now = time.monotonic()
        rows = (step - self._read_step) * self._batch_size
        seconds = now - self._read_at
        self._read_at, self._read_step = now, step
        first, *further = [(name, windowed.compute()) for name, windowed in self._windowed.items()]
        values = {
            "loss": float(mean_loss) / self._world_size,
            "samples_per_second": rows / seconds,
            "waits_for_data": min(1.0, waited / seconds),
            "batch_size": self._batch_size,
            "memory_mib": _peak_memory(self._device) / 2**20,
            **first[1],
        }
        return values | ({"tasks": dict(further)} if further else {})

    def recent_entropy(self) -> float:
        """Returns the normalized entropy of the rows of all ranks since it was returned last, and NaN while there are
        too few of them to judge; collective."""
        recent = self._recent.clone()
        dist.all_reduce(recent)
        loss, clicks, rows = recent.tolist()
        if rows < _FEWEST_ROWS:
            return math.nan
        self._recent.zero_()
        return _normalized_entropy(loss, clicks, rows)


def _normalized_entropy(loss: float, clicks: float, rows: float) -> float:
    """Returns the mean loss over that of always predicting the click rate; NaN if all labels are equal."""
    rate = clicks / rows
    if not 0 < rate < 1:
        return math.nan
    return -loss / rows / (rate * math.log(rate) + (1 - rate) * math.log(1 - rate))


def _peak_memory(device: torch.device) -> int:
    """Returns bytes that this rank held at most: on the GPU, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class CountedBatches:
    """Counts what a pipeline takes out of an iterator, some batches ahead of the steps, and how long that takes."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self.count, self._waited = 0, 0.0

    def waited(self) -> float:
        """Returns the seconds since the last call in which the pipeline waited for the next batch."""
        waited, self._waited = self._waited, 0.0
        return waited

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        started = time.monotonic()
        batch = next(self._batches)
        self._waited += time.monotonic() - started
        self.count += 1
        return batch
