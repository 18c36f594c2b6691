"""What a training measures of its own steps: loss, metrics, throughput and memory."""

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

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Takes in this rank's rows of a step."""
        self._windowed.update(logits, labels)

    def read(self, loss: Tensor, step: int) -> dict[str, float]:
        """Values over all ranks since the last call; collective."""
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
