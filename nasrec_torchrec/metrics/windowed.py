"""TorchRec's metrics over a sliding window of training rows."""

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.metrics.metric_module import RecMetricModule, generate_metric_module
from torchrec.metrics.metrics_config import (
    DefaultTaskInfo,
    MetricsConfig,
    RecMetricDef,
    RecMetricEnum,
    ThroughputDef,
)

_SHORT_NAMES = {"window_ne": "ne", "window_auc": "auc"}


class WindowedMetrics:
    """Normalized entropy and AUC of the last 100 steps of all ranks.

    Args:
        batch_size: number of rows per rank and step.
        device: device that holds their state.
    """

    def __init__(self, batch_size: int, device: torch.device) -> None:
        window = RecMetricDef(rec_tasks=[DefaultTaskInfo], window_size=100 * batch_size * dist.get_world_size())
        config = MetricsConfig(
            rec_tasks=[DefaultTaskInfo],
            rec_metrics={RecMetricEnum.NE: window, RecMetricEnum.AUC: window},
            throughput_metric=ThroughputDef(),
            state_metrics=[],
        )
        self._metrics = generate_metric_module(
            RecMetricModule,
            metrics_config=config,
            batch_size=batch_size,
            world_size=dist.get_world_size(),
            my_rank=dist.get_rank(),
            state_metrics_mapping={},
            device=device,
        )

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds this rank's ``(B,)`` logits and labels of a step."""
        probabilities = logits.float().sigmoid().nan_to_num(0.5)
        self._metrics.update({"prediction": probabilities, "label": labels, "weight": torch.ones_like(labels)})

    def compute(self) -> dict[str, float]:
        """Returns the values in the window as ``ne`` and ``auc``. This call is collective."""
        return {
            short: float(value)
            for name, value in self._metrics.compute().items()
            for suffix, short in _SHORT_NAMES.items()
            if name.endswith(f"|{suffix}")
        }
