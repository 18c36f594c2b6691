"""Shows what features, recipe and architecture contribute to the model of a finished race, by taking each away.

    nasrec auto --data DATA --out runs/auto --budget 20m
    python benchmarks/auto_parts.py --data DATA --race runs/auto --out runs/auto-parts

The model that the race shipped is trained again with every seed, and then without its added features, with the first of
them alone, with the recipe that races begin with, and with the cheap DLRM that recipes are judged by in place of its
architecture. LightGBM is trained with and without the same added features. A run that was killed can be resumed.
"""

import json
import statistics
from dataclasses import asdict, replace
from pathlib import Path

import torch

from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets.prepared import load_schema, open_split
from nasrec_torchrec.distributed.process_group import process_group
from nasrec_torchrec.metrics.click_metrics import click_metrics
from nasrec_torchrec.runs.files import read_text, write_text
from nasrec_torchrec.search.race.predictions import predict
from nasrec_torchrec.search.race.recipe import starting_recipes
from nasrec_torchrec.search.race.sources import cheap_baseline
from nasrec_torchrec.search.race.students import taught
from nasrec_torchrec.search.race.training import RaceData, train_trial
from nasrec_torchrec.search.race.tree import measure_tree, train_tree
from nasrec_torchrec.search.race.trial import Trial

_TREES = "LightGBM", "LightGBM with the same added features"


def main(
    data: Path,
    race: Path,
    out: Path,
    seeds: list[int] | None = None,
    only: list[str] | None = None,
    quick: bool = False,
) -> None:
    """Trains the variants and prints their test metrics.

    Args:
        data: prepared data set that the race was given.
        race: run folder of the finished race.
        out: receives a folder for every training, and ``parts.json``.
        seeds: of every variant; unset, 0, 1 and 2.
        only: variants to train, by parts of their titles, such as shipped or LightGBM; unset, all.
        quick: one epoch and one seed.
    """
    results = json.loads(read_text(race / "results.json"))
    shipped = Trial.from_dict(results["model"])
    base = load_schema(data)
    folders = sorted(race.glob("data-*"), key=lambda folder: int(folder.name.partition("-")[2]))
    rows = taught(shipped, RaceData((data, *folders), base), race)
    if quick:
        shipped, seeds = replace(shipped, recipe=replace(shipped.recipe, epochs=1)), [0]
    first = starting_recipes(base, results["rows"]["train"], shipped.recipe.epochs)[0]
    variants = {
        "the shipped model": shipped,
        "without its added features": replace(shipped, features=()),
        "with the first of them alone": replace(shipped, features=shipped.features[:1]),
        "with the first recipe": replace(shipped, recipe=first),
        "not taught": replace(shipped, teachers=()),
        "with the cheap DLRM": replace(shipped, interaction=cheap_baseline(base.embedding_dim)),
    }
    wanted = [title for title in (*variants, *_TREES) if only is None or any(part in title for part in only)]
    found: dict[str, list[dict[str, float]]] = {}
    known: dict[str, str] = {}
    with process_group() as device:
        for title, trial in variants.items():
            if title not in wanted:
                continue
            if trial.configuration in known:  # the race kept what it began with
                found[title] = found[known[trial.configuration]]
                continue
            known[trial.configuration] = title
            logits = []
            found[title] = []
            for seed in seeds if seeds is not None else [0, 1, 2]:
                folder = out / f"{trial.configuration}-seed-{seed}"
                repeated = replace(trial, seed=seed)
                train_trial(repeated, trial.recipe.epochs, rows, folder, device, lambda *_: False)
                predicted, labels = predict(folder, rows.open("test", repeated))
                found[title].append(asdict(click_metrics(predicted, labels)))
                logits.append(predicted.double().sigmoid())
            if len(logits) > 1 and title == "the shipped model":
                mean = torch.logit(torch.stack(logits).mean(0)).float()
                found["the mean of its seeds' predictions"] = [asdict(click_metrics(mean, labels))]
    for title, schema in zip(_TREES, (base, rows.schema(shipped)), strict=True):
        if title not in wanted:
            continue
        folder = out / title.replace(" ", "-").lower()
        train_tree(rows.folders[-1], schema, folder, None)
        found[title] = [measure_tree(folder, replace(open_split(rows.folders[-1], "test"), schema=schema))]
    write_text(out / "parts.json", json.dumps(found, indent=2))
    print("| model | test AUC | test log loss | seeds |\n|---|---:|---:|---:|")
    for title, runs in found.items():
        print(f"| {title} | {_spread(runs, 'auc')} | {_spread(runs, 'log_loss')} | {len(runs)} |")
    print(f"\nShipped: {shipped.title}, {shipped.recipe}; added features: {', '.join(shipped.features) or 'none'}.")


def _spread(runs: list[dict[str, float]], name: str) -> str:
    values = [one[name] for one in runs]
    return f"{statistics.fmean(values):.5f}" + (f" ± {statistics.stdev(values):.5f}" if len(values) > 1 else "")


if __name__ == "__main__":
    run(main)
