"""Compares a searched NASRecNet with what a user would pick instead.

    python benchmarks/quality.py --dataset movielens100k --out runs/quality-movielens
    python benchmarks/quality.py --dataset frappe --source FOLDER --out runs/quality-frappe

Every model gets the same number of trials with one seed. A baseline tries settings (learning rate and L2 on the
embeddings). Random and searched NASRecNets try architectures, sampled at random or the best of the search, with the
recipe's own setting. The published networks for Criteo, which cost ten times as much, only try the learning rates, with
the recipe's own L2. The trial with the best AUC on validation is repeated with more seeds, and its test metrics are
reported. The best two models get five seeds.

Every training has its own folder, so a run that was killed can be resumed, and ``--only`` lets you run parts side by
side. A last run without it collects all results.
"""

import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch

from nasrec_torchrec import PUBLISHED, Architecture, SearchSpace, datasets, search, training
from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets.prepared import MANIFEST, load_schema, open_split
from nasrec_torchrec.datasets.splits import SPLITS
from nasrec_torchrec.distributed.process_group import process_group
from nasrec_torchrec.models.config import BASELINES, Baseline
from nasrec_torchrec.models.description import ModelDescription, dense_parameters
from nasrec_torchrec.runs.files import write_text
from nasrec_torchrec.search.config import EvaluationConfig, EvolutionConfig, Limits, Objective
from nasrec_torchrec.search.cost import cost, model_multiply_adds
from nasrec_torchrec.training.config import TrainConfig
from nasrec_torchrec.training.trainer import Trainer

TITLES = {"mlp": "MLP", "deepfm": "DeepFM", "dlrm": "DLRM", "dcn": "DLRM_DCN", "random": "random NASRecNet"}
TITLES |= {"criteo-full": "Criteo Full, transferred", "criteo-small": "Criteo Small, transferred"}
TITLES |= {"searched": "searched NASRecNet"}


@dataclass(frozen=True)
class Recipe:
    """What to do with one data set.

    Args:
        config: Settings of every training. Its learning rate and L2 are those of random and searched NASRecNets.
        nasrec_epochs: Epochs of the NASRecNets. The baselines get more epochs because theirs take fewer seconds.
        learning_rates: Learning rates that the other models try.
        embedding_l2: L2 values that the other models try with each learning rate.
        over_layers: Layer widths of the baselines.
        space: Search space of random and searched architectures.
        max_flops: FLOPs that these may cost per example.
        supernet: Settings of the supernet's training.
        evolution: Settings of the search.
        evaluation: Settings of the evaluation of its candidates.
        seeds: Number of seeds per model.
        final_seeds: Number of seeds of the best models.
    """

    config: TrainConfig
    nasrec_epochs: int
    learning_rates: tuple[float, ...]
    embedding_l2: tuple[float, ...]
    over_layers: tuple[int, ...]
    space: SearchSpace
    max_flops: int
    supernet: TrainConfig
    evolution: EvolutionConfig
    evaluation: EvaluationConfig
    seeds: int = 3
    final_seeds: int = 5

    @property
    def trials(self) -> int:
        return len(self.learning_rates) * len(self.embedding_l2)


_ADAM = TrainConfig(
    epochs=20,
    batch_size=2048,
    learning_rate=1e-2,
    optimizer="adam",
    embedding_l2=0.02,
    embedding_std=1e-4,
    dropout=0.2,
    warmup_fraction=0.02,
    monitor="auc",
    log_every=50,
    checkpoint_every=1_000_000,
    keep_checkpoints=1,
)
RECIPES = {
    "frappe": Recipe(
        config=_ADAM,
        nasrec_epochs=14,
        learning_rates=(3e-3, 1e-2),
        embedding_l2=(5e-3, 2e-2),
        over_layers=(256, 256, 1),
        space=SearchSpace(
            num_blocks=3,
            sparse_operators=("embedded_fully_connected",),
            dense_widths=(64, 256),
            sparse_widths=(8, 16),
        ),
        max_flops=340_000,
        supernet=TrainConfig(6, 128, 0.05, adagrad_eps=1e-6, full_path_steps=0, log_every=100),
        evolution=EvolutionConfig(population=48, generations=14, children=8, tournament=16),
        evaluation=EvaluationConfig(finetune_steps=150, evaluation_rows=30_000),
    ),
    "movielens100k": Recipe(
        config=replace(_ADAM, epochs=8, batch_size=512, learning_rate=1e-3, embedding_l2=1e-3, embedding_std=None),
        nasrec_epochs=8,
        learning_rates=(1e-3, 3e-3),
        embedding_l2=(1e-4, 1e-3),
        over_layers=(128, 64, 1),
        space=SearchSpace(num_blocks=3, dense_widths=(16, 32, 64, 128), sparse_widths=(8, 16)),
        max_flops=60_000,
        supernet=TrainConfig(6, 256, 0.05, full_path_steps=100, log_every=100),
        evolution=EvolutionConfig(population=64, generations=24, children=8, tournament=16),
        evaluation=EvaluationConfig(finetune_steps=60, finetune_batch_size=256),
    ),
}


@dataclass(frozen=True)
class Plan:
    """What to run.

    Args:
        dataset: Name of a recipe.
        source: Folder with Frappe's train.csv, valid.csv and test.csv, or with MovieLens-100K's ml-100k.inter, .item
            and .user. The latter are downloaded if this is not set.
        only: Models to train now: some of mlp, deepfm, dlrm, dcn, criteo-full, criteo-small, random and searched.
            Nothing is reported then. If not set, everything except the published networks is trained, and the report
            covers everything in the folder.
        quick: Runs a small part of everything in a few minutes, to see that it works.
    """

    dataset: Literal["frappe", "movielens100k"] = "movielens100k"
    source: Path | None = None
    only: tuple[str, ...] = ()
    quick: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.only if name not in TITLES]
        if unknown:
            raise ValueError(f"only: expected some of {list(TITLES)}, found {unknown}")
        if self.dataset == "frappe" and self.source is None:
            raise ValueError("source: expected the folder of train.csv, valid.csv and test.csv")

    @property
    def recipe(self) -> Recipe:
        recipe = RECIPES[self.dataset]
        if not self.quick:
            return recipe
        return replace(
            recipe,
            config=replace(recipe.config, epochs=1),
            nasrec_epochs=1,
            learning_rates=recipe.learning_rates[:1],
            supernet=replace(recipe.supernet, epochs=1, batch_size=512),
            evolution=EvolutionConfig(population=8, generations=1, children=4, tournament=4),
            seeds=2,
            final_seeds=2,
        )


@dataclass
class Model:
    """The trials of a model: pairs of a description and the settings of its training."""

    name: str
    trials: list[tuple[ModelDescription, TrainConfig]]
    runs: list[list[dict[str, Any]]] = field(default_factory=list)


def main(out: Path, plan: Plan) -> None:
    """Trains what is not trained yet, and reports.

    Args:
        out: Folder for the data, the search, one folder per training, results.json, table.md and quality.png.
    """
    torch.set_num_threads(1)
    started = time.perf_counter()
    recipe, data = plan.recipe, out / "data"
    if not (data / MANIFEST).exists():
        if plan.dataset == "frappe":
            assert plan.source is not None
            datasets.prepare_frappe(plan.source, data)
        else:
            datasets.prepare_movielens100k(data, plan.source)
    names = plan.only or tuple(name for name in TITLES if name not in PUBLISHED or (out / name).exists())
    models = [Model(name, list(_trials(name, out, data, recipe, plan))) for name in names]
    for model in models:
        for number, (description, config) in enumerate(model.trials):
            model.runs.append([_train(out / model.name / f"trial-{number}", description, config, data, 0)])
        for seed in range(1, recipe.seeds):
            _repeat(model, out, data, seed)
    if plan.only:
        return
    for model in sorted(models, key=_mean_auc)[-2:]:
        for seed in range(recipe.seeds, recipe.final_seeds):
            _repeat(model, out, data, seed)
    report([_row(model, data) for model in models], plan, out)
    print(f"Took {time.perf_counter() - started:.0f} s.")


def _trials(
    name: str, out: Path, data: Path, recipe: Recipe, plan: Plan
) -> Iterator[tuple[ModelDescription, TrainConfig]]:
    schema = load_schema(data)
    nasrec = replace(recipe.config, epochs=recipe.nasrec_epochs)
    sizes = len(schema.dense), len(schema.sparse), schema.embedding_dim
    if name == "searched":
        for architecture in _searched(out, data, recipe):
            yield ModelDescription(schema, architecture), nasrec
    elif name == "random":
        generator = torch.Generator().manual_seed(0)
        found: dict[Architecture, None] = {}
        while len(found) < recipe.trials:
            architecture = recipe.space.sample(generator)
            if 2 * cost(architecture, *sizes).multiply_adds <= recipe.max_flops:
                found[architecture] = None
        for architecture in found:
            yield ModelDescription(schema, architecture), nasrec
    elif name in PUBLISHED:
        for rate in recipe.learning_rates:
            yield ModelDescription(schema, PUBLISHED[name]), replace(nasrec, learning_rate=rate)
    else:
        assert name in BASELINES
        baseline = Baseline(name, (64, schema.embedding_dim), recipe.over_layers)
        for rate, l2 in product(recipe.learning_rates, recipe.embedding_l2):
            config = replace(recipe.config, learning_rate=rate, embedding_l2=l2)
            yield ModelDescription(schema, baseline), config


def _searched(out: Path, data: Path, recipe: Recipe) -> list[Architecture]:
    """Returns the best architectures of a search over a supernet, as many as there are trials."""
    found = out / "search" / "architectures"
    if not (out / "search" / "seconds.json").exists():
        started = time.perf_counter()
        training.run_supernet(data, out / "supernet", recipe.space, recipe.supernet)
        trained = time.perf_counter()
        limits = Limits(max_flops=recipe.max_flops)
        settings = recipe.evolution, recipe.evaluation, Objective(), limits
        search.run(out / "supernet", data, out / "search", *settings, top_k=recipe.trials)
        seconds = {"supernet": trained - started, "search": time.perf_counter() - trained}
        write_text(out / "search" / "seconds.json", json.dumps(seconds))
    return [Architecture.from_json(file.read_text()) for file in sorted(found.glob("*.json"))]


def _repeat(model: Model, out: Path, data: Path, seed: int) -> None:
    """Repeats the best trial with another seed."""
    number = max(range(len(model.runs)), key=lambda trial: model.runs[trial][0]["validation"]["auc"])
    description, config = model.trials[number]
    model.runs[number].append(_train(out / model.name / f"trial-{number}", description, config, data, seed))


def _train(folder: Path, description: ModelDescription, config: TrainConfig, data: Path, seed: int) -> dict[str, Any]:
    """Returns the metrics of one training, from its folder if it is finished."""
    file = folder / f"seed-{seed}.json"
    if not file.exists():
        started = time.perf_counter()
        with process_group() as device:
            trainer = Trainer(description, replace(config, seed=seed), folder / f"seed-{seed}", device)
            train, validation, test = (open_split(data, split) for split in SPLITS)
            best = trainer.train(train, validation)
            seconds = time.perf_counter() - started
            assert best is not None
            metrics = {"validation": asdict(best), "test": asdict(trainer.evaluate(test)), "seconds": seconds}
        write_text(file, json.dumps(metrics))
    return json.loads(file.read_text())


def _best(model: Model) -> list[dict[str, Any]]:
    return max(model.runs, key=len)


def _mean_auc(model: Model) -> float:
    return statistics.fmean(run["validation"]["auc"] for run in _best(model))


def _row(model: Model, data: Path) -> dict[str, Any]:
    runs = _best(model)
    description, config = model.trials[model.runs.index(runs)]
    built = description.build(torch.device("cpu"))
    rows = next(iter(open_split(data, "test").evaluation_batches(8)))
    return {
        "model": model.name,
        "auc": [run["test"]["auc"] for run in runs],
        "log_loss": [run["test"]["log_loss"] for run in runs],
        "validation_auc": [[run["validation"]["auc"] for run in trial] for trial in model.runs],
        "parameters": dense_parameters(built),
        "multiply_adds": model_multiply_adds(built, rows),
        "seconds": [run["seconds"] for run in runs],
        "learning_rate": config.learning_rate,
        "embedding_l2": config.embedding_l2,
        "epochs": config.epochs,
    }


def report(rows: list[dict[str, Any]], plan: Plan, out: Path) -> None:
    """Prints the table and writes it, together with the raw results and the plot."""
    lines = [
        "| model | AUC | log loss | seeds | parameters | multiply-adds | training | learning rate, L2 |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        spread = {name: f"{statistics.fmean(row[name]):.5f} ± {statistics.stdev(row[name]):.5f}" for name in _METRICS}
        lines.append(
            f"| {TITLES[row['model']]} | {spread['auc']} | {spread['log_loss']} | {len(row['auc'])} "
            f"| {row['parameters']:,} | {row['multiply_adds']:,} | {statistics.fmean(row['seconds']):.0f} s "
            f"| {row['learning_rate']:g}, {row['embedding_l2']:g} |"
        )
    table = "\n".join(lines)
    write_text(out / "table.md", table + "\n")
    write_text(out / "results.json", json.dumps({"plan": plan.dataset, "quick": plan.quick, "rows": rows}, indent=2))
    _draw(rows, out / "quality.png")
    print(f"{plan.dataset}, test split, mean and deviation over the seeds:\n\n{table}")


_METRICS = ("auc", "log_loss")


def _draw(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    for row in rows:
        mean, deviation = statistics.fmean(row["log_loss"]), statistics.stdev(row["log_loss"])
        marker = "s" if row["model"] in BASELINES else "o"
        axis.errorbar(2 * row["multiply_adds"], mean, deviation, fmt=marker, capsize=3, label=TITLES[row["model"]])
    axis.set(xscale="log", xlabel="FLOPs per example, without the look-ups", ylabel="log loss on the test split")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_title("mean and deviation over the seeds", fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    run(main)
