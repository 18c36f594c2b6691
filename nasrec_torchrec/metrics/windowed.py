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
# Steps whose rows the metrics take in at once, since taking them in costs as much as a small layer.
_STEPS_AT_ONCE = 10


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
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []

    def update(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> None:
        """Adds this rank's ``(B,)`` logits and labels of a step, and the weights of the rows if they have some."""
        self._waiting.append((logits.detach(), labels, torch.ones_like(labels) if weights is None else weights))
        if len(self._waiting) == _STEPS_AT_ONCE:
            self._take_in()

    def compute(self) -> dict[str, float]:
        """Returns the values in the window as ``ne`` and ``auc``. This call is collective."""
        self._take_in()
        return {
            short: float(value)
            for name, value in self._metrics.compute().items()
            for suffix, short in _SHORT_NAMES.items()
            if name.endswith(f"|{suffix}")
        }

    def _take_in(self) -> None:
        """Hands the rows that are waiting to TorchRec's metrics."""
        if not self._waiting:
            return
        logits, labels, weights = map(torch.cat, zip(*self._waiting, strict=True))
        self._waiting.clear()
        probabilities = logits.float().sigmoid().nan_to_num(0.5)
        self._metrics.update({"prediction": probabilities, "label": labels, "weight": weights})
