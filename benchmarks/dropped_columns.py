"""What a model gains or loses without the columns that it gains nothing from.

    python benchmarks/dropped_columns.py --data data/movielens100k --out runs/dropped-columns

A DLRM is trained on all columns, and the shuffling of each column on the validation split tells which ones it may do
without, as in a race. It is then trained without all of these, and without the less important half of them.
"""

from dataclasses import replace
from pathlib import Path

import torch
from added_features import spread

from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets.prepared import load_schema, open_split
from nasrec_torchrec.distributed.process_group import process_group
from nasrec_torchrec.metrics.click_metrics import click_metrics
from nasrec_torchrec.models.stored import load_model
from nasrec_torchrec.search.race.columns import droppable
from nasrec_torchrec.search.race.predictions import predict
from nasrec_torchrec.search.race.recipe import starting_recipes
from nasrec_torchrec.search.race.sources import cheap_baseline
from nasrec_torchrec.search.race.training import RaceData, train_trial
from nasrec_torchrec.search.race.trial import Trial, columns_text
from nasrec_torchrec.training.column_importance import column_importances


def main(
    data: Path, out: Path, epochs: int = 6, recipe: int = 0, seeds: list[int] | None = None, quick: bool = False
) -> None:
    """Trains all of them, and prints a table.

    Args:
        data: prepared data set.
        out: folder for checkpoints; a run that was killed can be resumed.
        epochs: epochs of every training.
        recipe: number of the recipe among those that a race tries first.
        seeds: seeds of every training; unset, 0, 1 and 2.
        quick: one epoch and one seed.
    """
    torch.set_num_threads(1)
    chosen = seeds or ([0] if quick else [0, 1, 2])
    epochs = 1 if quick else epochs
    base = load_schema(data)
    rows = RaceData((data,), base)
    how = starting_recipes(base, len(open_split(data, "train")), epochs)[recipe]
    plain = Trial("features", "columns", cheap_baseline(base.embedding_dim), how)
    print("| columns | validation log loss | test log loss | test AUC |\n|---|---:|---:|---:|", flush=True)

    def train(trial: Trial) -> list[Path]:
        """Trains a model with every seed, prints its metrics, and returns the run folders."""
        folders, measured = [], []
        for seed in chosen:
            repeated = replace(trial, seed=seed)
            folders.append(out / f"{repeated.configuration}-seed-{seed}")
            train_trial(repeated, epochs, rows, folders[-1], device, lambda *_: False)
            validation, test = (
                click_metrics(*predict(folders[-1], rows.open(split, repeated))) for split in ("validation", "test")
            )
            measured.append((validation.log_loss, test.log_loss, test.auc or 0.0))
        cells = " | ".join(map(spread, zip(*measured, strict=True)))
        print(f"| {columns_text((), trial.dropped) or 'all'} | {cells} |", flush=True)
        return folders

    with process_group() as device:
        first, *_ = train(plain)
        _, model = load_model(first)
        files = rows.open("validation", plain)
        found = column_importances(model, data, files, 1)
        loss = click_metrics(*predict(first, files)).log_loss
        for names in droppable(found, base, loss):
            train(replace(plain, dropped=names))
    ranked = ", ".join(f"{one.column} {one.log_loss:.5f} ± {one.error:.5f}" for one in found)
    print(
        f"\nMeans and deviations of {len(chosen)} seeds: {how}. By how much the validation log loss of the first grows"
    )
    print(f"if a column is shuffled, with its standard error: {ranked}.")


if __name__ == "__main__":
    run(main)
