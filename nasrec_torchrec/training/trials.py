"""Several trainings of which the best is kept."""

import hashlib
import json
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
from nasrec_torchrec.models.description import ModelDescription, dense_parameters
from nasrec_torchrec.runs.files import remove, write_text
from nasrec_torchrec.runs.record import CONFIG
from nasrec_torchrec.training.config import TrainConfig, settings_of
from nasrec_torchrec.training.trainer import Trainer

METRICS = "metrics.json"


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
    is kept: differences between seeds are often larger than those between models. A training that is finished is not
    repeated when the same trials are asked for again, and one that was killed goes on.

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
        ValueError: when there is nothing to try, or the folder holds other trials.
    """
    if not descriptions or not learning_rates or not seeds:
        raise ValueError("nothing to train: expected at least one architecture, learning rate and seed")
    pairs = list(product(descriptions, learning_rates))
    settings = {"config": settings_of(config), "rates": [rate for _, rate in pairs], "seeds": list(seeds)}
    request = _digest([settings, [description.to_json() for description, _ in pairs]])
    again = config.resume == "auto"
    finished = _read(run_dir / METRICS) if again else None
    if finished is not None and finished.get("request") != request:
        raise ValueError(
            f"{run_dir}: holds finished trials of other settings; choose another folder, or --resume never "
            "to start anew"
        )
    if finished is not None:
        return finished["best"] if dist.get_rank() == 0 else None
    trials: list[dict[str, Any]] = []
    for number, (description, rate) in enumerate(pairs, start=1):
        runs = []
        for seed in seeds:
            folder = run_dir / f"trial-{number:02d}-seed-{seed}"
            of_run = replace(config, learning_rate=rate, seed=seed)
            known = _read(folder / "result.json") if again else None
            digest = _digest([settings_of(of_run), description.to_json()])
            if known is None or known["request"] != digest:
                known = {"request": digest, "run": _train(description, of_run, folder, device, splits)}
                if dist.get_rank() == 0:
                    write_text(folder / "result.json", json.dumps(known))
            runs.append(known["run"])
        trials.append(
            {
                "model": json.loads(description.to_json())["interaction"],
                "learning_rate": rate,
                "dense_parameters": dense_parameters(description.build(torch.device("meta"))),
                "mean_validation_log_loss": statistics.fmean(_validation_loss(run) for run in runs),
                "runs": runs,
            }
        )
    dist.barrier()
    if dist.get_rank() != 0:
        return None
    best = min(trials, key=lambda trial: trial["mean_validation_log_loss"])
    kept = run_dir / min(best["runs"], key=_validation_loss)["folder"]
    for name in ("checkpoints", "config.json", CONFIG, "plan.txt"):
        if (kept / name).exists():
            remove(run_dir / name)
            (kept / name).replace(run_dir / name)
    write_text(run_dir / METRICS, json.dumps({"best": best, "trials": trials, "request": request}, indent=2))
    for trial in trials:
        for run in trial["runs"]:
            remove(run_dir / run["folder"] / "checkpoints")
    return best


def _train(
    description: ModelDescription, config: TrainConfig, folder: Path, device: torch.device, splits: Splits
) -> dict[str, Any]:
    started = time.perf_counter()
    trainer = Trainer(description, config, folder, device)
    validation = trainer.train(splits.train, splits.validation)
    assert validation is not None
    seconds = round(time.perf_counter() - started, 2)
    test = trainer.evaluate(splits.test)
    metrics = {"validation": asdict(validation), "test": asdict(test)}
    return {"folder": folder.name, "seed": config.seed, "training_seconds": seconds, **metrics}


def _read(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text()) if file.exists() else None


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _validation_loss(run: dict[str, Any]) -> float:
    return run["validation"]["log_loss"]
