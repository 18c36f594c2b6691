"""What a run leaves to look at: JSON lines, TensorBoard and one progress bar. Only rank 0 writes."""

import json
import math
import shutil
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed as dist
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from nasrec_torchrec.files import write_text
from nasrec_torchrec.progress import update_interval


class RunLog:
    """Logs scalars of a run.

    Args:
        run_dir: receives ``log.jsonl`` and ``tensorboard/``.
        total_steps: of the progress bar.
        title: of the progress bar.
        step: where the run goes on; what was logged of later steps is dropped.
    """

    def __init__(self, run_dir: Path, total_steps: int, title: str, step: int = 0) -> None:
        self._writes = dist.get_rank() == 0
        self._bar = tqdm(
            total=total_steps,
            initial=step,
            desc=title,
            unit="step",
            disable=not self._writes,
            mininterval=update_interval(),
        )
        self._start = time.monotonic()
        if self._writes:
            run_dir.mkdir(parents=True, exist_ok=True)
            file = run_dir / "log.jsonl"
            lines = file.read_text().splitlines() if file.exists() and step else []
            write_text(file, "".join(line + "\n" for line in lines if _logged_step(line) <= step))
            self._file = file.open("a", buffering=1)
            if not step:
                shutil.rmtree(run_dir / "tensorboard", ignore_errors=True)
            self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1 if step else None)

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


def _logged_step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except ValueError:  # cut off when the run was killed
        return math.inf
