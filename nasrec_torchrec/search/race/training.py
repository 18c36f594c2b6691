"""The one place where a race meets the trainer: a trial is trained up to a rung, and later from there."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist

from nasrec_torchrec.datasets.prepared import load_schema, open_split, read_manifest
from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.datasets.soft_labels import SoftLabels
from nasrec_torchrec.metrics.click_metrics import ClickMetrics
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.runs.checkpoint import newest_intact, read_progress
from nasrec_torchrec.search.race.trial import Trial
from nasrec_torchrec.training.config import Monitor
from nasrec_torchrec.training.drift import decisive
from nasrec_torchrec.training.progress import Progress
from nasrec_torchrec.training.trainer import Trainer

# epoch, log loss, AUC, seconds -> whether to stop here
Report = Callable[[int, float, float, float], bool]


@dataclass(frozen=True)
class RaceData:
    """The rows of a race.

    Args:
        folders: prepared data set, and its copies with the features that were added one time after the other.
        base: the schema of the data without them.
        monitor: validation loss that decides.
        soft_labels: what the teachers of a trial predict for its training rows.
    """

    folders: tuple[Path, ...]
    base: Schema
    monitor: Monitor = "log_loss"
    soft_labels: SoftLabels | None = None

    @property
    def centers(self) -> bool:
        """Whether losses do not count how far the mean prediction is off."""
        return self.monitor == "centered_log_loss"

    def schema(self, trial: Trial) -> Schema:
        """What a trial's model reads."""
        return trial.schema(self.base, load_schema(self.folder(trial)))

    def folder(self, trial: Trial) -> Path:
        """The first data set with all features of a trial, so that further ones change nothing for it."""
        wanted = {*self.base.feature_names, *trial.features}
        return next(folder for folder in self.folders if wanted <= set(load_schema(folder).feature_names))

    def rows(self, split: str) -> int:
        """How many rows a split has."""
        return int(read_manifest(self.folders[0])["splits"][split]["rows"])

    def open(self, split: str, trial: Trial) -> ClickFiles:
        """A split with the columns that a trial's model reads; the files are compared with their checksums.

        Raises:
            ValueError: if the split has no rows, or a file is not the one that the manifest lists.
        """
        taught = trial.teachers and split == "train"
        assert not taught or self.soft_labels is not None, "a trial with teachers needs what they predict"
        files = replace(open_split(self.folder(trial), split), schema=self.schema(trial))
        return replace(files, soft_labels=self.soft_labels) if taught else files


class UnbuildableError(Exception):
    """A trial whose model or recipe cannot be trained at all, on this data or this machine."""


def train_trial(
    trial: Trial,
    until: int,
    data: RaceData,
    run_dir: Path,
    device: torch.device,
    report: Report | None,
    now: Callable[[], float] = time.monotonic,
) -> Progress:
    """Trains a trial from its newest checkpoint up to an epoch; collective.

    Args:
        trial: trial to train.
        until: epochs to reach in all.
        data: its rows.
        run_dir: run folder of the trial.
        device: this rank's.
        report: on rank 0, called after every epoch, and first for those that an earlier, killed process has trained.
        now: the clock that times epochs.

    Returns:
        Progress: how far it is; on rank 0 with the log losses of consecutive blocks of validation rows at the best
        epoch, and with warnings.

    Raises:
        UnbuildableError: on every rank, if the trial cannot be trained at all.
    """
    done = _trained(run_dir, data.monitor) if dist.get_rank() == 0 else []
    stop = False
    for epoch, (loss, auc) in enumerate(done, start=1):
        assert report is not None
        stop = report(epoch, loss, auc, 0.0)
    if _agreed(stop or len(done) >= until, device):
        return _progress_behind(run_dir) if dist.get_rank() == 0 else Progress()
    trainer = _trainer(trial, data, run_dir, device)
    started = now()

    def pause(epochs: float, metrics: ClickMetrics | None) -> bool:
        nonlocal started
        assert metrics is not None
        epoch = round(epochs)
        seconds, started = now() - started, now()
        loss = _number(decisive(metrics, data.monitor))
        stop = report(epoch, loss, _number(metrics.auc), seconds) if report is not None else False
        return _agreed(stop or epoch >= until, device)

    trainer.train(data.open("train", trial), data.open("validation", trial), pause)
    return trainer.progress


def check_final_fit(data: RaceData) -> None:
    """Checks that a trial can be trained on the rows of the training and the validation split together.

    Raises:
        ValueError: If only one of them has all rows without a click.
    """
    train, validation = (open_split(data.folders[0], split) for split in ("train", "validation"))
    try:
        train.followed_by(validation)
    except ValueError as error:
        raise ValueError(f"final_fit: {error}") from None


def fit_finally(trial: Trial, epochs: int, data: RaceData, run_dir: Path, device: torch.device) -> None:
    """Trains a trial again, on the rows of the training and the validation split together; collective.

    The learning rate follows the schedule of the trial, which ends where its loss was best on the validation split. A
    training that was killed resumes from its newest checkpoint.

    Args:
        trial: trial to train.
        epochs: epochs after which to stop.
        data: its rows.
        run_dir: run folder of the training.
        device: this rank's.

    Raises:
        UnbuildableError: on every rank, if it cannot be trained.
    """
    rows = data.open("train", trial).followed_by(data.open("validation", trial))
    trainer = _trainer(trial, data, run_dir, device)
    if not _agreed(dist.get_rank() == 0 and _epochs_behind(run_dir) >= epochs, device):
        trainer.train(rows, None, lambda done, _: round(done) >= epochs)


def _trainer(trial: Trial, data: RaceData, run_dir: Path, device: torch.device) -> Trainer:
    description = ModelDescription(data.schema(trial), trial.interaction)
    try:
        config = replace(trial.recipe.train_config(trial.seed), monitor=data.monitor)
        return Trainer(description, config, run_dir, device)
    except ValueError as error:  # of this model alone: an operator that its tables do not suit, too little memory
        raise UnbuildableError(str(error)) from None


def _agreed(stop: bool, device: torch.device) -> bool:
    """Returns what rank 0 decided."""
    decision = torch.tensor(int(stop), device=device)
    dist.broadcast(decision, 0)
    return bool(decision)


def _number(value: float | None) -> float:
    """Returns the metric as a JSON value; one that is undefined is not a number."""
    return math.nan if value is None else value


def _epochs_behind(run_dir: Path) -> int:
    """Returns how many epochs the newest undamaged checkpoint has seen."""
    folder = newest_intact(run_dir)
    return 0 if folder is None else int(read_progress(folder)["reader"]["epoch"])


def _progress_behind(run_dir: Path) -> Progress:
    """Returns what the newest undamaged checkpoint knows."""
    progress = Progress()
    if (folder := newest_intact(run_dir)) is not None:
        progress.load_state_dict(read_progress(folder))
    return progress


def _trained(run_dir: Path, monitor: Monitor) -> list[tuple[float, float]]:
    """The loss that decides, and the AUC, of the epochs behind the newest undamaged checkpoint."""
    folder = newest_intact(run_dir)
    if folder is None:
        return []
    return [
        (_number(decisive(found, monitor)), _number(found["auc"])) for found in read_progress(folder)["validations"]
    ]
