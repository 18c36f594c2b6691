"""What a run leaves to look at: JSON lines, TensorBoard and one progress bar. Only rank 0 writes."""

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed as dist
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from nasrec_torchrec.progress import update_interval


class RunLog:
    """Logs scalars of a run.

    Args:
        run_dir: receives ``log.jsonl`` and ``tensorboard/``.
        total_steps: of the progress bar.
        title: of the progress bar.
    """

    def __init__(self, run_dir: Path, total_steps: int, title: str) -> None:
        self._writes = dist.get_rank() == 0
        self._bar = tqdm(
            total=total_steps, desc=title, unit="step", disable=not self._writes, mininterval=update_interval()
        )
        self._start = time.monotonic()
        if self._writes:
            run_dir.mkdir(parents=True, exist_ok=True)
            self._file = (run_dir / "log.jsonl").open("a", buffering=1)
            self._board = SummaryWriter(str(run_dir / "tensorboard"))

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self._writes:
            self._file.close()
            self._board.close()

    def advance(self) -> None:
        """One step done."""
        self._bar.update()

    def write(self, event: str, step: int, **values: float) -> None:
        """Records an event's values, for instance ``write("train", 20, loss=0.5)``."""
        if not self._writes:
            return
        record: dict[str, Any] = {"event": event, "step": step, "seconds": round(time.monotonic() - self._start, 3)}
        self._file.write(json.dumps(record | values) + "\n")
        for name, value in values.items():
            self._board.add_scalar(f"{event}/{name}", value, step)
        shown = {name: f"{value:.4g}" for name, value in values.items() if name in ("loss", "samples_per_second")}
        if shown:
            self._bar.set_postfix(shown, refresh=False)
