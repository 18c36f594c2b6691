"""TorchRec's metrics over a sliding window of training rows."""

import torch
import torch.distributed as dist
from torchrec.metrics.metric_module import RecMetricModule, generate_metric_module
from torchrec.metrics.metrics_config import (
    DefaultTaskInfo,
    MetricsConfig,
    RecMetricDef,
    RecMetricEnum,
    ThroughputDef,
)


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
