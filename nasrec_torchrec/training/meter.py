"""What a training measures of its own steps: loss, metrics, throughput and memory."""

import math
import resource
import sys
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor
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
    """

    def __init__(self, config: TrainConfig, world_size: int, device: torch.device, step: int) -> None:
        self._batch_size, self._world_size, self._device = config.batch_size, world_size, device
        self._windowed = WindowedMetrics(config.batch_size // world_size, device)
        self._read_at, self._read_step = time.monotonic(), step
        # The sum of the losses, the clicks and the rows since the last reading of `recent_entropy`.
        self._recent = torch.zeros(3, device=device)

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> None:
        """Takes in this rank's rows of a step, their mean loss, and their weights if they have some."""
        clicks, rows = labels.sum(), loss.new_tensor(len(labels))
        if weights is not None:
            clicks, rows = (labels * weights).sum(), weights.sum()
        sums = torch.stack([loss.detach() * len(labels), clicks, rows])
        self._recent += sums.where(loss.isfinite(), torch.zeros_like(sums))  # others are skipped and counted elsewhere
        self._windowed.update(logits, labels, weights)

    def read(self, loss: Tensor, step: int) -> dict[str, float]:
        """Returns the values over all ranks since the last call. This call is collective."""
        mean_loss = loss.clone()
        dist.all_reduce(mean_loss)
        now = time.monotonic()
        rows = (step - self._read_step) * self._batch_size
        seconds = now - self._read_at
        self._read_at, self._read_step = now, step
        return {
            "loss": float(mean_loss) / self._world_size,
            "samples_per_second": rows / seconds,
            "batch_size": self._batch_size,
            "memory_mib": _peak_memory(self._device) / 2**20,
            **self._windowed.compute(),
        }

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
    """Counts what a pipeline takes out of an iterator: it is some batches ahead of the steps."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self.count = 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self.count += 1
        return batch
