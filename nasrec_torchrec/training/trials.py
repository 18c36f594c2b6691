"""Several training runs, of which the best is kept."""

import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.datasets.split_counts import split_warnings
from nasrec_torchrec.finite import json_text, order
from nasrec_torchrec.models.description import ModelDescription, dense_parameters
from nasrec_torchrec.runs import names
from nasrec_torchrec.runs.checkpoint import keep_best
from nasrec_torchrec.runs.files import local_copy, read_json, write_text
from nasrec_torchrec.runs.fingerprint import Fingerprint, code_of, digest, fingerprint, require_same
from nasrec_torchrec.runs.folder import promote, remove_checkpoints
from nasrec_torchrec.runs.ranks import on_first_rank, writing
from nasrec_torchrec.runs.record import COMMAND
from nasrec_torchrec.training.config import Monitor, TrainConfig, settings_of
from nasrec_torchrec.training.drift import decisive
from nasrec_torchrec.training.guard import DivergedError
from nasrec_torchrec.training.inputs import inputs_of
from nasrec_torchrec.training.teaching import Teachers
from nasrec_torchrec.training.trainer import Trainer
from nasrec_torchrec.training.warm_start import WarmStart

# The mean over the seeds of a trial, and that of the loss which decides where the click rate drifts.
_MEAN, _CENTERED = "mean_validation_log_loss", "mean_centered_log_loss"
_T = TypeVar("_T")
_REMEDY = "choose another folder, or --resume never to start from scratch"


@dataclass(frozen=True)
class Splits:
    """The rows to train on, the rows that decide, and the rows that are only reported."""

    train: ClickFiles
    validation: ClickFiles
    test: ClickFiles


@dataclass(frozen=True)
class Unreadable:
    """A file that should describe a model to try but is not valid.

    Args:
        file: name of the file.
        error: what is wrong with the file.
    """

    file: str
    error: str


def train_best(
    models: Sequence[ModelDescription | Unreadable],
    learning_rates: Sequence[float],
    seeds: Sequence[int],
    config: TrainConfig,
    run_dir: Path,
    device: torch.device,
    splits: Splits,
    initial: WarmStart | None = None,
    teachers: Teachers | None = None,
) -> dict[str, Any] | None:
    """Trains every model with every learning rate and seed. This call is collective.

    The pair of model and learning rate with the lowest mean validation log loss over the seeds wins, because seeds
    often differ more than models do, and its best seed is kept. When the same trials are requested again, finished runs
    are not repeated, and a run that was killed is resumed.

    A run that diverges, or whose model cannot be built, is recorded as failed with its ``error``, and the other trials
    continue. A pair with a failed seed wins only if every pair has one.

    Args:
        models: models to try; an unreadable one is a failed trial.
        learning_rates: learning rates to try with each model.
        seeds: seeds with which to repeat each trial.
        config: all other settings.
        run_dir: folder that receives a folder per run and ``metrics.json``; the kept model is moved up into it.
        device: device of this rank.
        splits: splits of the data set. The test split takes no part in the choice and may have no rows.
        initial: earlier run whose weights every trial begins with.
        teachers: trained models whose mean prediction takes part of the place of the training rows' labels.

    Returns:
        dict | None: The winning trial as ``metrics.json`` records it, on rank 0; None elsewhere.

    Raises:
        ValueError: If there is nothing to try, a split that decides has no rows, the folder holds other trials, or
            all trials failed.
    """
    if not models or not learning_rates or not seeds:
        raise ValueError("nothing to train: expected at least one architecture, learning rate and seed")
    pairs = [(model, replace(config, learning_rate=rate)) for model, rate in product(models, learning_rates)]
    for name, split in (("train", splits.train), ("validation", splits.validation)):
        if not len(split):
            raise ValueError(f"{name}: the split has no rows; prepare the data set with a larger share of them")
    rates = [made.learning_rate for _, made in pairs]
    inputs = fingerprint(
        data={name: split.digest for name, split in vars(splits).items()},
        models=[digest(_shown(model)) for model, _ in pairs],
        settings=settings_of(config) | {"learning_rates": rates, "seeds": list(seeds)},
        code=code_of(COMMAND.plugins),
        **({} if initial is None else initial.inputs()),
        **({} if teachers is None else teachers.inputs()),
    )
    if dist.get_rank() == 0:
        counts = {name: files.counts for name, files in vars(splits).items()}
        counted = split_warnings({name: known for name, known in counts.items() if known})
        for warning in dict.fromkeys([*splits.train.warnings, *counted]):
            print(f"warning: {warning}", file=sys.stderr)
    with writing(run_dir, "training"):
        finished = _read(run_dir / names.METRICS, _Record) if config.resume == "auto" else None
        if finished is not None:
            require_same(run_dir, finished.inputs, inputs, _REMEDY)
            if dist.get_rank() != 0:
                return None
            print(f"{run_dir}: these trainings are finished; --resume never repeats them", file=sys.stderr)
            _clean(run_dir, finished.trials)  # where the process that finished them was killed first
            return finished.best
        if teachers is not None:
            soft = on_first_rank(partial(teachers.soft_labels, run_dir / names.SOFT_LABELS))
            taught = replace(splits.train, soft_labels=replace(soft, file=local_copy(soft.file)))
            splits = replace(splits, train=taught)
        trainings = _Trainings(run_dir, device, splits, initial)
        trials: list[dict[str, Any]] = []
        for number, (model, made) in enumerate(pairs, start=1):
            trials.append(trial := trainings.trial(number, model, made, seeds))
            if trial.get("error") and dist.get_rank() == 0:
                print(f"trial {number} of {len(pairs)} failed: {trial['error']}", file=sys.stderr)
        dist.barrier()
        best = _choose(trials)
        if dist.get_rank() != 0:
            return None
        _publish(_Record(best, trials, inputs), run_dir)
        _clean(run_dir, trials)
        return json.loads(json_text(best))  # the same as when it is read again


@dataclass(frozen=True)
class _Record:
    """The content of ``metrics.json``; an early version recorded no inputs."""

    best: dict[str, Any]
    trials: list[dict[str, Any]]
    inputs: Fingerprint | None = None


@dataclass(frozen=True)
class _Result:
    """The content of ``result.json``; an early version recorded no inputs."""

    run: dict[str, Any]
    inputs: Fingerprint | None = None


@dataclass(frozen=True)
class _Trainings:
    """Trains the trials of one folder.

    Args:
        run_dir: folder of all trials.
        device: device of this rank.
        splits: splits of the data set.
        initial: earlier run whose weights every trial begins with.
    """

    run_dir: Path
    device: torch.device
    splits: Splits
    initial: WarmStart | None

    def trial(
        self, number: int, model: ModelDescription | Unreadable, config: TrainConfig, seeds: Sequence[int]
    ) -> dict[str, Any]:
        """Returns the record of a pair of model and learning rate, trained with every seed."""
        trial: dict[str, Any] = {"model": None, "learning_rate": config.learning_rate, "dense_parameters": None}
        runs: list[dict[str, Any]] = []
        if isinstance(model, Unreadable):
            trial |= {"file": model.file, "error": model.error}
        else:
            trial["model"] = json.loads(model.to_json())["interaction"]
            for seed in seeds:
                folder = self.run_dir / names.TRIAL.format(number, seed)
                runs.append(self._finished_or_trained(model, replace(config, seed=seed), folder))
            if errors := [run["error"] for run in runs if run["error"]]:
                trial["error"] = errors[0]
            else:
                trial["dense_parameters"] = dense_parameters(model.build(torch.device("meta")))
        trained = [run["validation"] for run in runs if not run["error"]]
        means = {_MEAN: statistics.fmean(found["log_loss"] for found in trained) if trained else None}
        if config.monitor == "centered_log_loss" and trained:
            deciding = [loss for found in trained if (loss := decisive(found, config.monitor)) is not None]
            means[_CENTERED] = statistics.fmean(deciding)
        return trial | means | {"runs": runs}

    def _finished_or_trained(self, model: ModelDescription, config: TrainConfig, folder: Path) -> dict[str, Any]:
        """Returns the record of a run, which is trained now unless it was finished before."""
        more = {} if self.initial is None else self.initial.inputs()
        inputs = inputs_of(vars(self.splits), config, model, **more)
        known = _read(folder / names.RESULT, _Result) if config.resume == "auto" else None
        if known is not None:
            require_same(folder, known.inputs, inputs, _REMEDY)
            return {"error": None} | known.run
        run = self._train(model, config, folder)
        if dist.get_rank() == 0:
            write_text(folder / names.RESULT, json_text(asdict(_Result(run, inputs))))
        return run

    def _train(self, model: ModelDescription, config: TrainConfig, folder: Path) -> dict[str, Any]:
        run: dict[str, Any] = {"folder": folder.name, "seed": config.seed, "error": None}
        run |= {"validation": None, "test": None, "warnings": []}
        started = time.perf_counter()
        try:
            trainer = Trainer(model, config, folder, self.device, self.initial)
        except ValueError as error:  # of this model alone: an operator that its tables do not suit, no layer to drop
            return run | {"error": str(error)}
        try:
            validation = trainer.train(self.splits.train, self.splits.validation)
        except DivergedError as error:
            return run | {"error": str(error), "warnings": list(trainer.progress.warnings.values())}
        assert validation is not None
        run["warnings"] = list(trainer.progress.warnings.values())
        run["kept"] = trainer.progress.kept(config.epochs)
        run |= {"training_seconds": round(time.perf_counter() - started, 2), "validation": asdict(validation)}
        if not math.isfinite(validation.log_loss):
            return run | {"error": "the validation log loss is not a finite number after any epoch"}
        return run | {"test": asdict(trainer.evaluate(self.splits.test)) if len(self.splits.test) else None}


def _choose(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the best trial.

    Raises:
        ValueError: If all of them failed.
    """
    best = min(trials, key=_standing)
    if best[_MEAN] is None:
        first = trials[0]["error"]
        raise ValueError(first if len(trials) == 1 else f"all {len(trials)} trials failed; the first one: {first}")
    return best


def _publish(record: _Record, run_dir: Path) -> None:
    """Moves the run to keep up into the folder of all trials, and writes their record."""
    monitor: Monitor = "centered_log_loss" if _CENTERED in record.best else "log_loss"
    trained = [run for run in record.best["runs"] if not run["error"]]
    kept = min(trained, key=lambda run: order(decisive(run["validation"], monitor)))["folder"]
    # Until the new record is there, nothing says that the folder is finished.
    (run_dir / names.METRICS).unlink(missing_ok=True)
    promote(run_dir / kept, run_dir)
    write_text(run_dir / names.METRICS, json_text(asdict(record), indent=2))


def _clean(run_dir: Path, trials: Sequence[dict[str, Any]]) -> None:
    """Removes what finished trials no longer need: every checkpoint but the one that is used."""
    keep_best(run_dir)
    for trial in trials:
        for run in trial["runs"]:
            remove_checkpoints(run_dir / run["folder"])


def _standing(trial: dict[str, Any]) -> tuple[bool, int, tuple[bool, float]]:
    """Returns the sort key of a pair; the lowest is the best: fewest failed seeds, then the lowest mean loss."""
    loss = trial.get(_CENTERED, trial[_MEAN])
    return loss is None, sum(bool(run["error"]) for run in trial["runs"]), order(loss)


def _read(file: Path, kind: type[_T]) -> _T | None:
    return read_json(file, kind, "remove it to train again") if file.exists() else None


def _shown(model: ModelDescription | Unreadable) -> Any:
    return asdict(model) if isinstance(model, Unreadable) else model.to_json()
