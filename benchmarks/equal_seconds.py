"""Gives whole procedures the same seconds on the same data, and compares what each would have shipped.

    python benchmarks/equal_seconds.py --data DATA --out runs/equal-seconds --budget 15m --seeds '[0,1,2]'

The procedures are `auto`; `auto` without added features; the same with random architectures alone; the baselines alone,
tuned; and the paper's procedure: a supernet, evolution in it, and the training of its best architectures. LightGBM
with its own early stopping stands beside them. Each procedure chooses on the validation split, and the one model that
it would have shipped is measured on the test split. A run that was killed can be resumed.

Seconds are processor seconds of the one process, so that other work on the machine does not decide.
"""

import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student

from nasrec_torchrec.architecture import Architecture
from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets.prepared import load_schema, open_split
from nasrec_torchrec.distributed.process_group import process_group
from nasrec_torchrec.metrics.click_metrics import click_metrics
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.runs.files import read_text, write_text
from nasrec_torchrec.search.config import EvaluationConfig, EvolutionConfig
from nasrec_torchrec.search.evaluator import Evaluator
from nasrec_torchrec.search.evolution import evolve, one_by_one
from nasrec_torchrec.search.race.config import RaceConfig, RaceSpace
from nasrec_torchrec.search.race.finish import predict
from nasrec_torchrec.search.race.recipe import Recipe, usual_batch_size
from nasrec_torchrec.search.race.run import auto
from nasrec_torchrec.search.race.training import RaceData, train_trial
from nasrec_torchrec.search.race.tree import measure_tree, train_tree, trees_are_installed
from nasrec_torchrec.search.race.trial import Trial
from nasrec_torchrec.search.supernet import load_supernet
from nasrec_torchrec.search_space import SearchSpace
from nasrec_torchrec.training.config import TrainConfig
from nasrec_torchrec.training.trainer import Trainer

_CONFIDENCE = 0.95
_PAPER, _TREE = "the paper's procedure", "LightGBM"
# Shares of the budget after which the paper's supernet and its search end; the rest trains the best architectures.
_SUPERNET_ENDS, _SEARCH_ENDS = 0.3, 0.6
_FINALISTS, _EPOCHS = 3, 4


def main(
    data: Path,
    out: Path,
    budget: str = "15m",
    seeds: list[int] | None = None,
    only: list[str] | None = None,
    quick: bool = False,
) -> None:
    """Runs every procedure with every seed, and prints a table of test metrics.

    Args:
        data: prepared data set.
        out: receives a run folder for every procedure and seed, and ``equal-seconds.json``.
        budget: of each of them, with s, m, h or d.
        seeds: of the procedures; unset, 0, 1 and 2.
        only: procedures to run, by parts of their titles; unset, all.
        quick: three trials of one epoch instead of the budget, and two seeds.
    """
    whole = RaceConfig(budget=budget, clock="cpu", trees=trees_are_installed(), quiet=True)
    if quick:
        whole = replace(whole, trials=3, epochs=1, final_seeds=1)
    plain = replace(whole, features=False, trees=False)
    races = {
        "auto": whole,
        "auto, no added features": plain,
        "random architectures alone": replace(plain, sources=("random",)),
        "baselines alone, tuned": replace(plain, sources=("baseline",)),
    }
    procedures: dict[str, Callable[[Path, int], dict[str, Any]]] = {
        title: partial(_race, data, config) for title, config in races.items()
    }
    procedures[_PAPER] = lambda folder, seed: _paper(data, folder, 5.0 if quick else whole.budget_seconds, seed)
    if trees_are_installed():
        procedures[_TREE] = lambda folder, seed: _tree(data, folder, seed)
    file = out / "equal-seconds.json"
    found: dict[str, Any] = json.loads(read_text(file)) if file.exists() else {"budget": budget, "shipped": {}}
    if found["budget"] != budget:
        raise ValueError(f"{file}: holds runs of {found['budget']}, not of {budget}")
    torch.set_num_threads(1)
    for seed in seeds or ([0, 1] if quick else [0, 1, 2]):
        for title, procedure in procedures.items():
            runs = found["shipped"].setdefault(title, {})
            if str(seed) in runs or (only and not any(part in title for part in only)):
                continue
            folder = out / f"{title.replace(', ', '-').replace(' ', '-')}-{seed}"
            runs[str(seed)] = procedure(folder, seed)
            write_text(file, json.dumps(found, indent=2))
    shipped = {title: runs for title, runs in found["shipped"].items() if runs}
    print(table(shipped))
    print("\nWhat each would have shipped, with its test log loss, and the seconds of training in each phase:\n")
    for title, runs in shipped.items():
        for seed, one in runs.items() if title != _TREE else ():
            features = f" with {', '.join(one['features'])}" if one.get("features") else ""
            spent = ", ".join(f"{phase} {seconds:.0f}" for phase, seconds in one["spent"].items())
            print(f"- {title}, seed {seed}: {one['title']}{features}: {one['log_loss']:.4f} ({spent})")


def table(shipped: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The runs as Markdown."""
    lines = [
        "| procedure | test log loss | test AUC | log loss less that of auto, 95 % | seeds | trials | seconds |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    reference = shipped.get("auto", {})
    for title, runs in shipped.items():
        paired = [runs[seed]["log_loss"] - reference[seed]["log_loss"] for seed in runs if seed in reference]
        difference = "" if title == "auto" or not paired else _interval(paired)
        trials, seconds = (statistics.fmean(one[name] for one in runs.values()) for name in ("trials", "seconds"))
        lines.append(
            f"| {title} | {_interval([one['log_loss'] for one in runs.values()])} "
            f"| {_interval([one['auc'] for one in runs.values()])} | {difference} | {len(runs)} | {trials:.0f} "
            f"| {seconds:.0f} |"
        )
    return "\n".join(lines)


def _race(data: Path, config: RaceConfig, folder: Path, seed: int) -> dict[str, Any]:
    results = auto(data, folder, replace(config, seed=seed), RaceSpace())
    assert results is not None, "one rank"
    best = results["measured"]["winner"]
    place = best["seeds"].index(results["model"]["seed"])
    phases: dict[str, float] = {}
    for trial in results["trials"]:
        phase = trial["trial"]["phase"]
        phases[phase] = phases.get(phase, 0.0) + sum(trial["seconds"])
    return {
        "log_loss": best["test"][place]["log_loss"],
        "auc": best["test"][place]["auc"],
        "validation": best["validation"][place]["log_loss"],
        "seconds": results["seconds"],
        "trials": len(results["trials"]),
        "title": best["title"],
        "recipe": best["recipe"],
        "features": best["features"],
        "ensemble": best.get("test ensemble"),
        "spent": {phase: round(seconds, 1) for phase, seconds in phases.items()},
        "sources": results["sources"],
        "suspicious": results["suspicious"],
    }


def _tree(data: Path, folder: Path, seed: int) -> dict[str, Any]:
    schema = load_schema(data)
    tree = train_tree(data, schema, folder, None, seed, time.process_time)
    test = measure_tree(folder, open_split(data, "test"))
    return {**_picked(test), "validation": tree["validation"][0]["log_loss"], "seconds": tree["seconds"], "trials": 1}


def _picked(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: metrics[name] for name in ("log_loss", "auc")}


def _paper(data: Path, folder: Path, budget: float, seed: int) -> dict[str, Any]:
    """A supernet by the paper's kind of recipe, regularized evolution in it, and the training of its best."""
    started = time.process_time()
    spent: dict[str, float] = {}

    def seconds() -> float:
        return time.process_time() - started

    schema, space = load_schema(data), SearchSpace(**asdict(RaceSpace()))
    train, validation = open_split(data, "train"), open_split(data, "validation")
    batch = usual_batch_size(len(train))
    with process_group() as device:
        supernet = ModelDescription(schema, space, use_layernorm=True)
        probe = TrainConfig(1, batch, 0.05, full_path_steps=1, resume="never", seed=seed)
        began = time.process_time()
        Trainer(supernet, probe, folder / "probe", device).train(train, None, lambda *_: True, (0.2,))
        epoch = (time.process_time() - began) / 0.2
        epochs = max(1, int((_SUPERNET_ENDS * budget - seconds()) / epoch))
        config = TrainConfig(epochs, batch, 0.05, full_path_steps=100, seed=seed)
        Trainer(supernet, config, folder / "supernet", device).train(train, None)
        spent["supernet"] = round(seconds(), 1)
        evaluation = EvaluationConfig(60, 256)
        evolution = EvolutionConfig(32, 64, 8, 16, seed)
        candidates = []
        with Evaluator(load_supernet(folder / "supernet", device), train, validation, evaluation) as evaluator:
            for candidate in evolve(space, one_by_one(evaluator), evolution):
                candidates.append(candidate)
                if seconds() > _SEARCH_ENDS * budget:
                    break
        spent["search"] = round(seconds() - spent["supernet"], 1)
        candidates.sort(key=lambda candidate: candidate.loss)
        recipe = Recipe(0.1, _EPOCHS, batch, "adagrad", warmup_fraction=0.1)
        losses: dict[int, float] = {}
        rows = RaceData((data,), schema)
        for number, candidate in enumerate(candidates[:_FINALISTS]):
            trial = Trial("finals", "supernet", candidate.architecture, recipe, (), seed)
            curve: list[tuple[float, float]] = []

            def report(epoch: int, loss: float, auc: float, took: float, curve: list[Any] = curve) -> bool:
                curve.append((loss, took))
                return bool(losses) and seconds() + took > budget

            if losses and seconds() + spent["first finalist"] > 1.1 * budget:
                break
            train_trial(trial, _EPOCHS, rows, folder / f"{number}", device, report, time.process_time)
            losses[number] = min(loss for loss, _ in curve)
            spent.setdefault("first finalist", round(sum(took for _, took in curve), 1))
        best = min(losses, key=lambda number: losses[number])
        spent["training"] = round(seconds() - spent["supernet"] - spent["search"], 1)
        test = asdict(click_metrics(*predict(folder / f"{best}", open_split(data, "test"))))
        architecture = candidates[best].architecture
        assert isinstance(architecture, Architecture)
        return {
            **_picked(test),
            "validation": losses[best],
            "seconds": round(seconds(), 1),
            "trials": len(losses),
            "title": f"nasrecnet, place {best + 1} of {len(candidates)} in the supernet",
            "architecture": json.loads(architecture.to_json(None)),
            "spent": spent,
        }


def _interval(values: list[float]) -> str:
    """The mean and half of its confidence interval."""
    mean = f"{statistics.fmean(values):.5f}"
    if len(values) < 2:
        return mean
    quantile = float(student.ppf((1 + _CONFIDENCE) / 2, len(values) - 1))
    return f"{mean} ± {quantile * statistics.stdev(values) / math.sqrt(len(values)):.5f}"


if __name__ == "__main__":
    run(main)
