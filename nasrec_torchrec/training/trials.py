"""Several trainings of which the best is kept."""

import json
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.files import write_text
from nasrec_torchrec.models.description import ModelDescription, dense_parameters
from nasrec_torchrec.training.trainer import TrainConfig, Trainer


@dataclass(frozen=True)
class Splits:
    """Rows to train on, rows that decide, and rows that are only reported."""

    train: ClickFiles
    validation: ClickFiles
    test: ClickFiles


def train_best(
    descriptions: Sequence[ModelDescription],
    learning_rates: Sequence[float],
    seeds: Sequence[int],
    config: TrainConfig,
    run_dir: Path,
    device: torch.device,
    splits: Splits,
) -> dict[str, Any] | None:
    """Trains every model with every learning rate and seed; collective.

    The pair of model and learning rate with the lowest mean validation log loss over the seeds wins, and its best seed
    is kept: differences between seeds are often larger than those between models.

    Args:
        descriptions: models to try.
        learning_rates: to try each model with.
        seeds: to repeat each trial with.
        config: everything else.
        run_dir: receives a folder per training and ``metrics.json``; the kept model moves up into it.
        device: this rank's device.
        splits: the test split takes no part in the choice.

    Returns:
        dict | None: the winning trial's record, on rank 0.

    Raises:
        ValueError: when there is nothing to try.
    """
    if not descriptions or not learning_rates or not seeds:
        raise ValueError("nothing to train: expected at least one architecture, learning rate and seed")
    trials: list[dict[str, Any]] = []
    for number, (description, rate) in enumerate(product(descriptions, learning_rates), start=1):
        runs = []
        for seed in seeds:
            folder = run_dir / f"trial-{number:02d}-seed-{seed}"
            started = time.perf_counter()
            trainer = Trainer(description, replace(config, learning_rate=rate, seed=seed), folder, device)
            validation = trainer.train(splits.train, splits.validation)
            assert validation is not None
            seconds = round(time.perf_counter() - started, 2)
            test = trainer.evaluate(splits.test)
            metrics = {"validation": asdict(validation), "test": asdict(test)}
            runs.append({"folder": folder.name, "seed": seed, "training_seconds": seconds, **metrics})
        trials.append(
            {
                "learning_rate": rate,
                "dense_parameters": dense_parameters(description.build(torch.device("meta"))),
                "mean_validation_log_loss": statistics.fmean(_validation_loss(run) for run in runs),
                "runs": runs,
            }
        )
    if dist.get_rank() != 0:
        return None
    best = min(trials, key=lambda trial: trial["mean_validation_log_loss"])
    kept = run_dir / min(best["runs"], key=_validation_loss)["folder"]
    for name in ("checkpoints", "config.json"):
        target = run_dir / name
        shutil.rmtree(target, ignore_errors=True)
        (kept / name).replace(target)
    for trial in trials:
        for run in trial["runs"]:
            shutil.rmtree(run_dir / run["folder"] / "checkpoints", ignore_errors=True)
    write_text(run_dir / "metrics.json", json.dumps({"best": best, "trials": trials}, indent=2))
    return best


def _validation_loss(run: dict[str, Any]) -> float:
    return run["validation"]["log_loss"]
