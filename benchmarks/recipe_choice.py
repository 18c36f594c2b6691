"""How much the recipe weighs beside the model, and which recipe to choose by validation rows.

    python benchmarks/recipe_choice.py --data data/movielens --out runs/recipes.jsonl    # 80 trainings, twenty minutes
    python benchmarks/recipe_choice.py --out benchmarks/results/recipes-movielens.jsonl

The usual baselines are trained with the recipes that a race begins with, and one between its first two, with several
seeds. Then a race's first two decisions are replayed many times, each time with other seeds of these trainings: a
DLRM chooses the recipe, and the best of all models with this recipe is shipped. Without data, it prints what earlier
trainings said.
"""

import json
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets.prepared import load_schema, open_split
from nasrec_torchrec.distributed.process_group import process_group
from nasrec_torchrec.metrics.click_metrics import click_metrics
from nasrec_torchrec.models.config import Baseline
from nasrec_torchrec.search.race import sources
from nasrec_torchrec.search.race.choice import regularized
from nasrec_torchrec.search.race.predictions import predict
from nasrec_torchrec.search.race.recipe import Recipe, starting_recipes
from nasrec_torchrec.search.race.training import RaceData, train_trial
from nasrec_torchrec.search.race.trial import Entry, Trial
from nasrec_torchrec.training.drift import deciding_loss, drift

_REPLAYS = 2000
_RECIPES = 5


def main(out: Path, data: Path | None = None, epochs: int = 10, seeds: int = 4, quick: bool = False) -> None:
    """Trains, if there is data, and prints two tables.

    Args:
        out: file with a line of JSON for every training; those that it has are not repeated.
        data: prepared data set.
        epochs: epochs of every training; it ends four epochs after its best one.
        seeds: trainings of every model with every recipe.
        quick: two models, three recipes, one seed and two epochs.
    """
    if data is not None:
        _train(out, data, *((2, 1, 2, 3) if quick else (epochs, seeds, len(sources.USUAL), _RECIPES)))
    runs = [json.loads(line) for line in out.read_text().splitlines()]
    kinds, recipes = (list(dict.fromkeys(one[name] for one in runs)) for name in ("model", "title"))
    cells = {
        (kind, recipe): [one for one in runs if (one["model"], one["title"]) == (kind, recipe)]
        for kind in kinds
        for recipe in recipes
    }
    print(f"| recipe | {' | '.join(f'{kind}: validation | {kind}: test' for kind in kinds)} |")
    print(f"|---|{'---:|---:|' * len(kinds)}")
    for recipe in recipes:
        shown = (f"{_mean(cells[kind, recipe], 'loss')} | {_mean(cells[kind, recipe], 'test')}" for kind in kinds)
        print(f"| {recipe} | {' | '.join(shown)} |")
    print()
    whole = [recipe for recipe in recipes if all(cells[kind, recipe] for kind in kinds)]
    chosen: dict[str, Callable[[Sequence[Entry]], Entry]] = {
        "any of them": lambda entries: random.choice(entries),
        "the lowest validation loss": lambda entries: entries[0],
        "the strongest L2 within one standard error": lambda entries: regularized(entries[0], entries),
    }
    print("| recipe chosen by | test log loss of what is shipped | deviation | recipes |")
    print("|---|---:|---:|---|")
    for title, choose in chosen.items():
        random.seed(0)
        shipped, names = zip(*(_replayed(cells, kinds, whole, choose) for _ in range(_REPLAYS)), strict=True)
        shares = "; ".join(f"{name}: {names.count(name) / _REPLAYS:.0%}" for name in whole if name in names)
        print(f"| {title} | {statistics.fmean(shipped):.5f} | {statistics.stdev(shipped):.5f} | {shares} |")


def _replayed(
    cells: dict[tuple[str, str], list[dict[str, Any]]],
    kinds: Sequence[str],
    recipes: Sequence[str],
    choose: Callable[[Sequence[Entry]], Entry],
) -> tuple[float, str]:
    """The test loss of what a race ships, and its recipe."""
    judged = sorted((_entry(random.choice(cells[kinds[0], recipe])) for recipe in recipes), key=lambda e: e.loss)
    judge = choose(judged)
    title = _title(judge.trial.recipe)
    others = [_entry(random.choice(cells[kind, title])) for kind in kinds[1:]]
    best = min((judge, *others), key=lambda entry: entry.loss)
    return float(best.facts["test"]), title


def _entry(one: dict[str, Any]) -> Entry:
    model = Baseline("dlrm", (64, 16), (128, 64, 1))
    trial = Trial("recipes", "baseline", model, Recipe(**one["recipe"]), seed=one["seed"])
    facts = {"block_losses": one["blocks"], "test": one["test"]}
    return Entry(0, trial, tuple(one["losses"]), status="complete", facts=facts)


def _title(recipe: Recipe) -> str:
    return f"{recipe.optimizer} {recipe.learning_rate:g}, L2 {recipe.embedding_l2:g}"


def _mean(runs: Sequence[dict[str, Any]], name: str) -> str:
    found = [min(one["losses"]) if name == "loss" else one[name] for one in runs]
    if len(found) < 2:
        return "".join(f"{value:.4f}" for value in found)
    return f"{statistics.fmean(found):.4f} ± {statistics.stdev(found):.4f}"


def _train(out: Path, folder: Path, epochs: int, seeds: int, kinds: int, count: int) -> None:
    torch.set_num_threads(1)
    schema = load_schema(folder)
    train, validation, test = (open_split(folder, split) for split in ("train", "validation", "test"))
    data = RaceData((folder,), schema, deciding_loss(drift(train, validation)))
    first, second, *others = starting_recipes(schema, len(train), epochs)
    between = replace(first, learning_rate=5e-3, embedding_l2=3e-2)
    recipes = [first, between, second, *others][:count]
    models = sources.baselines(schema.embedding_dim)[:kinds]
    trials = [
        Trial("recipes", "baseline", model, recipe, seed=seed)
        for seed in range(seeds)
        for model in models
        for recipe in recipes
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    done = {_key(json.loads(line)) for line in out.read_text().splitlines()} if out.exists() else set()
    with process_group() as device, out.open("a") as file:
        for trial in trials:
            assert isinstance(trial.interaction, Baseline)
            named = {"model": trial.interaction.kind, "title": _title(trial.recipe), "seed": trial.seed}
            if _key(named) in done:
                continue
            losses: list[float] = []

            def report(_epoch: int, loss: float, _auc: float, _seconds: float) -> bool:
                losses.append(loss)  # noqa: B023
                return len(losses) - losses.index(min(losses)) > 4  # noqa: B023

            with TemporaryDirectory() as run_dir:
                progress = train_trial(trial, epochs, data, Path(run_dir) / "run", device, report)
                metrics = click_metrics(*predict(Path(run_dir) / "run", test))
            measured = {"losses": losses, "blocks": progress.best_blocks, "test": metrics.log_loss, "auc": metrics.auc}
            print(json.dumps(named | {"recipe": asdict(trial.recipe)} | measured), file=file, flush=True)


def _key(one: dict[str, Any]) -> tuple[str, str, int]:
    return one["model"], one["title"], one["seed"]


if __name__ == "__main__":
    run(main)
