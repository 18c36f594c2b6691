"""What a model costs, measured: seconds of a training step and latency of a batch."""

import math
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.utils.benchmark import Timer
from torchrec.datasets.utils import Batch
from torchrec.models.dlrm import DLRMTrain

from nasrec_torchrec.inference.fusion import fuse
from nasrec_torchrec.models.description import ClickModel, ModelDescription, dense_parameters
from nasrec_torchrec.models.nasrecnet import NASRecNet
from nasrec_torchrec.search.cost import model_multiply_adds
from nasrec_torchrec.table_widths import table_bytes

# Rows of a batch whose latency counts.
LATENCY_ROWS = 512
_WARM_UP, _STEPS = 1, 3
_CALL = "model(batch.dense_features, batch.sparse_features)"
# How often models are timed in turns, and calls each time.
_ROUNDS, _CALLS = 31, 3


def step_seconds(
    description: ModelDescription,
    batch: Batch,
    device: torch.device,
    at_most: float = math.inf,
    now: Callable[[], float] = time.perf_counter,
) -> float:
    """Measures the median time of a training step with Adam, on one process.

    Args:
        description: of the model.
        batch: rows of a step.
        device: where it is trained.
        at_most: seconds of interest. A model whose first step takes three times as long is not measured any further.
        now: the clock that times steps.
    """
    task = DLRMTrain(description.build(device))
    optimizer = torch.optim.Adam(task.parameters(), 1e-3)
    batch = batch.to(device)
    times = []
    for _ in range(_WARM_UP + _STEPS):
        started = now()
        optimizer.zero_grad()
        loss, _ = task(batch)
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(now() - started)
        if times[0] > 3 * at_most:
            return times[0]
    return statistics.median(times[_WARM_UP:])


def measured_costs(description: ModelDescription, batch: Batch, device: torch.device) -> dict[str, float]:
    """Multiply-adds per example, parameters without the tables, bytes of these, latency of a batch in microseconds.

    The latency is that of look-ups and dense part together, with one thread; a NASRecNet is measured in its fused form,
    in which it serves.
    """
    model = description.build(torch.device("cpu"))
    costs = {"parameters": dense_parameters(model), "multiply_adds": model_multiply_adds(model, batch)}
    costs["table_bytes"] = table_bytes(description.schema.tables())
    return {**costs, "latency_us": latency_us(_Serving(model).eval().to(device), batch.to(device))}


def latency_us(model: nn.Module, batch: Batch) -> float:
    """Measures the median microseconds that a model needs for a batch on the same device, with one thread."""
    with torch.inference_mode():
        timer = Timer(_CALL, globals=locals(), num_threads=1)
        timer.timeit(2)
        return float(1e6 * timer.blocked_autorange(min_run_time=0.2).median)


def latencies_us(models: Mapping[str, tuple[ClickModel, Batch]], device: torch.device) -> dict[str, float]:
    """Measures the same of several models in turns, each with its own batch, so that all share what slows a machine."""
    timers = {}
    for name, (model, rows) in models.items():
        named = {"model": _Serving(model).eval().to(device), "batch": rows.to(device)}
        timers[name] = Timer(_CALL, globals=named, num_threads=1)
    times: dict[str, list[float]] = {name: [] for name in timers}
    with torch.inference_mode():
        for _ in range(1 + _ROUNDS):
            for name, timer in timers.items():
                times[name].append(timer.timeit(_CALLS).mean)
    return {name: 1e6 * statistics.median(found[1:]) for name, found in times.items()}


class _Serving(nn.Module):
    """A model in the form in which it serves."""

    def __init__(self, model: ClickModel) -> None:
        super().__init__()
        self.model: nn.Module = model
        if isinstance(model, NASRecNet):
            model.interaction_arch = fuse(model.interaction_arch)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.model(*inputs)
