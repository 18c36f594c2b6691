"""What choosing by one month says about the next, where the click rate drifts.

    python benchmarks/drift.py --data data/nycflights13 --out runs/drift.jsonl        # 25 trainings, ten minutes
    python benchmarks/drift.py --out benchmarks/results/drift-nycflights13.jsonl

Baselines and random networks are trained with the recipes that a race begins with, and the validation and the test
split are measured after every epoch. Without data, it prints what earlier trainings said.
"""

import json
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets.prepared import load_schema, open_split
from nasrec_torchrec.distributed.process_group import process_group
from nasrec_torchrec.metrics.click_metrics import ClickMetrics
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.search.race import sources
from nasrec_torchrec.search.race.config import RaceSpace
from nasrec_torchrec.search.race.recipe import starting_recipes
from nasrec_torchrec.training.trainer import Trainer

_RULES = ("log_loss", "centered_log_loss", "auc")
_BASELINES, _RANDOM, _RECIPES = 9, 4, (0, 1, 2, 5)


def main(out: Path, data: Path | None = None, trainings: int = 25, epochs: int = 5, quick: bool = False) -> None:
    """Trains, if there is data, and prints a table.

    Args:
        out: file with a line of JSON for every epoch of every training; those that it has are not repeated.
        data: prepared data set.
        trainings: number of trainings.
        epochs: epochs of each of them.
        quick: two trainings of two epochs.
    """
    if data is not None:
        _train(out, data, 2 if quick else trainings, 2 if quick else epochs)
    known = [json.loads(line) for line in out.read_text().splitlines()]
    runs: dict[str, list[dict[str, Any]]] = {}
    for one in known:
        runs.setdefault(one["training"], []).append(one)
    print(f"{len(runs)} trainings, {len(known)} epochs\n")
    print("| epochs chosen by | mean test log loss | mean test AUC | correlation with the test log loss |")
    print("|---|---:|---:|---:|")
    for rule in _RULES:
        sign = -1 if rule == "auc" else 1
        best = [min(found, key=lambda one: sign * one["validation"][rule]) for found in runs.values()]
        losses, aucs = ([one["test"][name] for one in best] for name in ("log_loss", "auc"))
        pairs = [[one["validation"][rule], one["test"]["log_loss"]] for one in known]
        correlation = float(np.corrcoef(np.array(pairs).T)[0, 1])
        title = {"log_loss": "log loss", "centered_log_loss": "centered log loss", "auc": "AUC"}[rule]
        means = f"{statistics.fmean(losses):.5f} | {statistics.fmean(aucs):.5f}"
        print(f"| validation {title} | {means} | {correlation:.2f} |")


def _train(out: Path, data: Path, trainings: int, epochs: int) -> None:
    torch.set_num_threads(1)
    schema = load_schema(data)
    train, validation, test = (open_split(data, split) for split in ("train", "validation", "test"))
    recipes = starting_recipes(schema, len(train), epochs)
    generator = torch.Generator().manual_seed(0)
    models: list[sources.Interaction] = [sources.cheap_baseline(schema.embedding_dim)]
    models += sources.baselines(schema.embedding_dim)[: _BASELINES - 1]
    models += [RaceSpace().sample(generator) for _ in range(_RANDOM)]
    pairs = [(recipe, number) for recipe in _RECIPES if recipe < len(recipes) for number in range(len(models))]
    out.parent.mkdir(parents=True, exist_ok=True)
    done = {json.loads(line)["training"] for line in out.read_text().splitlines()} if out.exists() else set()
    with process_group() as device, out.open("a") as file:
        for recipe, number in pairs[:trainings]:
            name = f"model {number}, recipe {recipe}"
            if name in done:
                continue
            measured: list[dict[str, Any]] = []
            with TemporaryDirectory() as folder:
                model = ModelDescription(schema, models[number])
                trainer = Trainer(model, recipes[recipe].train_config(0), Path(folder) / "run", device)

                def pause(_epochs: float, metrics: ClickMetrics | None) -> bool:
                    both = {"validation": vars(metrics), "test": vars(trainer.evaluate(test))}  # noqa: B023
                    measured.append({"training": name} | both)  # noqa: B023
                    return False

                trainer.train(train, validation, pause)
            for one in measured:
                print(json.dumps(one), file=file, flush=True)


if __name__ == "__main__":
    run(main)
