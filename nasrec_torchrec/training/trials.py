"""Several trainings of which the best is kept."""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from nasrec_torchrec.datasets.click_data import ClickData
from nasrec_torchrec.files import write_text
from nasrec_torchrec.models.description import ModelDescription, dense_parameters
from nasrec_torchrec.training.trainer import TrainConfig, Trainer


def train_best(
    descriptions: Sequence[ModelDescription],
    learning_rates: Sequence[float],
    config: TrainConfig,
    run_dir: Path,
    device: torch.device,
    train: ClickData,
    validation: ClickData,
) -> dict[str, Any] | None:
    """Trains every model with every learning rate; collective.

    Args:
        descriptions: models to try.
        learning_rates: to try each model with.
        config: everything else.
        run_dir: receives ``trial-01``, ... and ``metrics.json``; the best trial's model moves up into it.
        device: this rank's device.
        train: rows to train on.
        validation: rows whose log loss decides.

    Returns:
        dict | None: the best trial's record, on rank 0.

    Raises:
        ValueError: when there is nothing to try.
    """
    trials: list[dict[str, Any]] = []
    for number, (description, rate) in enumerate(product(descriptions, learning_rates), start=1):
        folder = run_dir / f"trial-{number:02d}"
        started = time.perf_counter()
        trainer = Trainer(description, replace(config, learning_rate=rate), folder, device)
        metrics = trainer.train(train, validation)
        assert metrics is not None
        trials.append(
            {
                "trial": folder.name,
                "learning_rate": rate,
                "training_seconds": round(time.perf_counter() - started, 2),
                "dense_parameters": dense_parameters(description.build(torch.device("meta"))),
                "validation": asdict(metrics),
            }
        )
    if not trials:
        raise ValueError("nothing to train: no architecture was found")
    best = min(trials, key=lambda trial: trial["validation"]["log_loss"])
    if dist.get_rank() != 0:
        return None
    for name in ("checkpoints", "config.json", "model.json"):
        target = run_dir / name
        shutil.rmtree(target, ignore_errors=True)
        (run_dir / best["trial"] / name).replace(target)
    for trial in trials:
        shutil.rmtree(run_dir / trial["trial"] / "checkpoints", ignore_errors=True)
    write_text(run_dir / "metrics.json", json.dumps({"best": best, "trials": trials}, indent=2))
    return best
