"""The one place where a race meets the trainer: a trial is trained up to a rung, and later from there."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from nasrec_torchrec.datasets.prepared import load_schema
from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.metrics.click_metrics import ClickMetrics
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.runs.checkpoint import latest_checkpoint, read_progress
from nasrec_torchrec.runs.log import read_events
from nasrec_torchrec.search.race.trial import Trial
from nasrec_torchrec.training.trainer import Trainer

# epoch, log loss, AUC, seconds -> whether to stop here
Report = Callable[[int, float, float, float], bool]


@dataclass(frozen=True)
class RaceData:
    """The rows of a race.

    Args:
        folder: prepared data set, with all added features once there are some.
        base: the schema of the data without them.
    """

    folder: Path
    base: Schema

    @property
    def whole(self) -> Schema:
        """The schema with all added features."""
        return load_schema(self.folder)

    def schema(self, trial: Trial) -> Schema:
        """What a trial's model reads."""
        return trial.schema(self.base, self.whole)

    def open(self, split: str, trial: Trial) -> ClickFiles:
        """A split with the columns that a trial's model reads."""
        return ClickFiles.open(self.folder / split, self.schema(trial))


def train_trial(
    trial: Trial, until: int, data: RaceData, run_dir: Path, device: torch.device, report: Report | None
) -> None:
    """Trains a trial from its newest checkpoint up to an epoch; collective.

    Args:
        trial: what to train.
        until: epochs to reach in all.
        data: its rows.
        run_dir: of the trial.
        device: this rank's.
        report: on rank 0, called after every epoch, and first for those that an earlier, killed process has trained.
    """
    done = _trained(run_dir) if dist.get_rank() == 0 else []
    stop = False
    for epoch, (loss, auc) in enumerate(done, start=1):
        assert report is not None
        stop = report(epoch, loss, auc, 0.0)
    if _agreed(stop or len(done) >= until, device):
        return
    trainer = Trainer(
        ModelDescription(data.schema(trial), trial.interaction),
        trial.recipe.train_config(trial.seed),
        run_dir,
        device,
    )
    started = time.monotonic()

    def pause(epochs: float, metrics: ClickMetrics | None) -> bool:
        nonlocal started
        assert metrics is not None
        epoch = round(epochs)
        now = time.monotonic()
        seconds, started = now - started, now
        stop = report(epoch, metrics.log_loss, _number(metrics.auc), seconds) if report is not None else False
        return _agreed(stop or epoch >= until, device)

    trainer.train(data.open("train", trial), data.open("validation", trial), pause)


def _agreed(stop: bool, device: torch.device) -> bool:
    """What rank 0 decided."""
    decision = torch.tensor(int(stop), device=device)
    dist.broadcast(decision, 0)
    return bool(decision)


def _number(value: float | None) -> float:
    """A metric that does not exist is not a number."""
    return math.nan if value is None else value


def _trained(run_dir: Path) -> list[tuple[float, float]]:
    """Validation log loss and AUC of the epochs behind the newest checkpoint."""
    folder = latest_checkpoint(run_dir)
    if folder is None:
        return []
    step = read_progress(folder)["step"]
    found = {
        event["step"]: (_number(event["log_loss"]), _number(event["auc"]))
        for event in read_events(run_dir)
        if event["event"] == "validation" and event["step"] <= step
    }
    return [found[step] for step in sorted(found)]
