"""What buckets and histories gain where the data was split by time, and in which order histories should count.

    python benchmarks/added_features.py --data data/movielens100k --out runs/added-features

A DLRM is trained without added features; with all dense features in buckets too; and with the histories that `auto`
ranks first by its errors, the first one alone and all together. The histories of training rows count the rows before
them in a shuffled order, or the rows of earlier times.
"""

import json
import shutil
import statistics
import time
from pathlib import Path

import torch

from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets.buckets import buckets_of
from nasrec_torchrec.datasets.crosses import add_crosses, history_of
from nasrec_torchrec.datasets.prepared import MANIFEST, load_schema, open_split
from nasrec_torchrec.distributed.process_group import process_group
from nasrec_torchrec.metrics.click_metrics import click_metrics
from nasrec_torchrec.runs.files import read_text, write_text
from nasrec_torchrec.search.race import sources
from nasrec_torchrec.search.race.features import rank_features
from nasrec_torchrec.search.race.predictions import predict
from nasrec_torchrec.search.race.recipe import starting_recipes
from nasrec_torchrec.search.race.training import RaceData, train_trial
from nasrec_torchrec.search.race.trial import Trial

_COLUMNS = 12


def main(
    data: Path, out: Path, epochs: int = 5, seeds: list[int] | None = None, histories: int = 4, quick: bool = False
) -> None:
    """Trains all of them, and prints a table.

    Args:
        data: prepared data set that was split by time.
        out: folder for copies of the data and for checkpoints.
        epochs: epochs of every training.
        seeds: seeds of every training; unset, 0, 1 and 2.
        histories: largest number of histories; 0 leaves them out.
        quick: one epoch and one seed.
    """
    torch.set_num_threads(1)
    chosen = seeds or ([0] if quick else [0, 1, 2])
    epochs = 1 if quick else epochs
    split = json.loads(read_text(data / MANIFEST))["split"]
    if split["split"] != "time":
        raise ValueError(f"{data}: expected data that was split by time, found the rule {split['split']!r}")
    shutil.rmtree(out, ignore_errors=True)
    base = load_schema(data)
    recipe = starting_recipes(base, len(open_split(data, "train")), epochs)[0]
    results: dict[str, list[tuple[float, float]]] = {}

    def train(title: str, folder: Path, features: tuple[str, ...]) -> None:
        rows = RaceData((folder,), base)
        for seed in chosen:
            model = sources.cheap_baseline(base.embedding_dim)
            trial = Trial("features", "features", model, recipe, features, seed)
            losses: list[float] = []

            def report(_epoch: int, loss: float, _auc: float, _took: float, losses: list[float] = losses) -> bool:
                losses.append(loss)
                return False

            run_dir = out / "runs" / f"{len(results)}-{seed}"
            train_trial(trial, epochs, rows, run_dir, device, report, time.process_time)
            test = click_metrics(*predict(run_dir, rows.open("test", trial)))
            results.setdefault(title, []).append((min(losses), test.log_loss))

    with process_group() as device:
        train("none", data, ())
        if buckets := [buckets_of(dense.name) for dense in base.dense]:
            add_crosses(data, out / "buckets", buckets)
            train("buckets", out / "buckets", tuple(feature.name for feature in buckets))
        plain = RaceData((data,), base)
        trial = Trial("features", "features", sources.cheap_baseline(base.embedding_dim), recipe, (), chosen[0])
        logits, _ = predict(out / "runs" / f"0-{chosen[0]}", plain.open("validation", trial))
        ranked = rank_features(data, base, logits.numpy(), histories, _COLUMNS).chosen if histories else ()
        features = [history_of(one.columns) for one in ranked]
        names = tuple(feature.name for feature in features)
        shuffled = out / "shuffled-plain"
        shutil.copytree(data, shuffled)
        manifest = json.loads(read_text(shuffled / MANIFEST))
        manifest["split"] = {"split": "given", "split_column": None}  # whose rows have no order
        write_text(shuffled / MANIFEST, json.dumps(manifest))
        for title, source in (("shuffled", shuffled), ("earlier rows", data)):
            folder = out / title.replace(" ", "-")
            if features:
                add_crosses(source, folder, features)
            for chosen_names in dict.fromkeys((names[:1], names)) if features else ():
                plural = "history" if len(chosen_names) == 1 else "histories"
                train(f"{len(chosen_names)} {plural}, {title}", folder, chosen_names)
    print("| added features | validation log loss | test log loss |\n|---|---:|---:|")
    for title, pairs in results.items():
        print(f"| {title} | {' | '.join(map(spread, zip(*pairs, strict=True)))} |")
    ranking = f"The histories, the first one first: {', '.join(names)}. " if names else ""
    print(f"\n{ranking}Means and deviations of {len(chosen)} seeds.")


def spread(values: tuple[float, ...]) -> str:
    """Returns the mean of what several seeds reached, and its deviation."""
    mean = f"{statistics.fmean(values):.5f}"
    return f"{mean} ± {statistics.stdev(values):.5f}" if len(values) > 1 else mean


if __name__ == "__main__":
    run(main)
