"""Compares histories that count earlier rows with histories in a shuffled order, on data that was split by time.

    python benchmarks/history_order.py --data data/movielens100k --out runs/history-order

The histories are those that `auto` ranks first by the errors of a DLRM. It is then trained without them, with the
first one, and with all, in both orders and with every seed.
"""

import json
import shutil
import statistics
import time
from pathlib import Path

import torch

from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets.crosses import add_crosses, history_of
from nasrec_torchrec.datasets.prepared import MANIFEST, load_schema, open_split
from nasrec_torchrec.distributed.process_group import process_group
from nasrec_torchrec.metrics.click_metrics import click_metrics
from nasrec_torchrec.runs.files import read_text, write_text
from nasrec_torchrec.search.race import sources
from nasrec_torchrec.search.race.features import rank_features
from nasrec_torchrec.search.race.finish import predict
from nasrec_torchrec.search.race.recipe import starting_recipes
from nasrec_torchrec.search.race.training import RaceData, train_trial
from nasrec_torchrec.search.race.trial import Trial

_HISTORIES, _COLUMNS = 4, 12


def main(data: Path, out: Path, epochs: int = 5, seeds: list[int] | None = None, quick: bool = False) -> None:
    """Trains all of them, and prints a table.

    Args:
        data: prepared data set that was split by time.
        out: folder for copies of the data and for checkpoints.
        epochs: epochs of every training.
        seeds: seeds of every training; unset, 0, 1 and 2.
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
        plain = RaceData((data,), base)
        trial = Trial("features", "features", sources.cheap_baseline(base.embedding_dim), recipe, (), chosen[0])
        logits, _ = predict(out / "runs" / f"0-{chosen[0]}", plain.open("validation", trial))
        ranked = rank_features(data, base, logits.numpy(), _HISTORIES, _COLUMNS).chosen
        if not ranked:
            raise ValueError(f"{data}: no history says anything about the errors of a DLRM")
        histories = [history_of(one.columns) for one in ranked]
        names = tuple(feature.name for feature in histories)
        shuffled = out / "shuffled-plain"
        shutil.copytree(data, shuffled)
        manifest = json.loads(read_text(shuffled / MANIFEST))
        manifest["split"] = {"split": "given", "split_column": None}  # whose rows have no order
        write_text(shuffled / MANIFEST, json.dumps(manifest))
        for title, source in (("shuffled", shuffled), ("earlier rows", data)):
            add_crosses(source, out / title.replace(" ", "-"), histories)
            for features in dict.fromkeys((names[:1], names)):
                train(f"{len(features)}, {title}", out / title.replace(" ", "-"), features)
    print("| histories | validation log loss | test log loss |\n|---|---:|---:|")
    for title, pairs in results.items():
        print(f"| {title} | {' | '.join(map(_spread, zip(*pairs, strict=True)))} |")
    print(f"\nThe histories, the first one first: {', '.join(names)}. Means and deviations of {len(chosen)} seeds.")


def _spread(values: tuple[float, ...]) -> str:
    mean = f"{statistics.fmean(values):.5f}"
    return f"{mean} ± {statistics.stdev(values):.5f}" if len(values) > 1 else mean


if __name__ == "__main__":
    run(main)
