"""Profiler traces of a few steps, on demand."""

from pathlib import Path
from types import TracebackType

import torch
from torch.profiler import ProfilerActivity, profile

from nasrec_torchrec.runs.files import atomic_path, write_text
from nasrec_torchrec.training.config import parse_steps


class StepProfiler:
    """Profiles a range of steps of this rank.

    Args:
        steps: range of steps, ``first:last``; None profiles nothing.
        folder: folder that receives ``steps-<first>-<last>-rank-<rank>.json``, a trace for Perfetto or
            chrome://tracing, and a table of the operators as ``.txt``.
        rank: rank of this process.
        device: device of this rank.
    """

    def __init__(self, steps: str | None, folder: Path, rank: int, device: torch.device) -> None:
        self._steps = parse_steps(steps) if steps else range(0)
        self._file = folder / f"steps-{(steps or '').replace(':', '-')}-rank-{rank}.json"
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
        self._profile = profile(activities=activities, record_shapes=True) if steps else None
        self._running = False

    def __enter__(self) -> "StepProfiler":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def before(self, step: int) -> None:
        """Informs the profiler of the number of the next step, counted from 1."""
        if self._profile is None:
            return
        if not self._running and step == self._steps[0]:
            self._profile.start()
            self._running = True
        elif self._running and step > self._steps[-1]:
            self._stop()

    def _stop(self) -> None:
        if self._profile is None or not self._running:
            return
        self._running = False
        self._profile.stop()
        with atomic_path(self._file) as temporary:
            self._profile.export_chrome_trace(str(temporary))
        table = self._profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=40)
        write_text(self._file.with_suffix(".txt"), table + "\n")
