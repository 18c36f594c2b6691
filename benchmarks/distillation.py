"""Measures what a model gains when trained ones teach it, see `nasrec train --teachers`.

    python benchmarks/distillation.py --data data/movielens100k --out runs/distillation --epochs 14 --recipe 0

Four baselines are trained with hard labels and the first seed. Their mean prediction for the training rows then teaches
a DLRM and a small MLP, which are trained with other shares of it too, 0 for none, and with several seeds. Every model
is measured at the epoch that is best on the validation rows.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets.prepared import load_schema, open_split
from nasrec_torchrec.distributed.process_group import process_group
from nasrec_torchrec.metrics.click_metrics import click_metrics
from nasrec_torchrec.models.config import Baseline
from nasrec_torchrec.models.mean_prediction import mean_prediction
from nasrec_torchrec.runs.files import write_text
from nasrec_torchrec.search.race.predictions import predict
from nasrec_torchrec.search.race.recipe import starting_recipes
from nasrec_torchrec.search.race.sources import cheap_baseline, small_mlp
from nasrec_torchrec.search.race.training import RaceData, train_trial
from nasrec_torchrec.search.race.trial import Trial
from nasrec_torchrec.training.drift import deciding_loss, decisive, drift
from nasrec_torchrec.training.teaching import Teachers


def main(
    data: Path,
    out: Path,
    epochs: int = 6,
    recipe: int = 0,
    shares: tuple[float, ...] = (0.0, 0.5, 0.9),
    seeds: tuple[int, ...] = (0, 1, 2),
) -> None:
    """Trains teachers and students, and prints their metrics.

    Args:
        data: prepared data set.
        out: receives a folder for every training, and ``results.json``; what it holds is not repeated.
        epochs: of every training.
        recipe: which of the recipes that a race begins with.
        shares: weights of the teachers' prediction; 0 trains on the labels alone.
        seeds: of every student.
    """
    schema = load_schema(data)
    splits = {name: open_split(data, name) for name in ("train", "validation", "test")}
    monitor = deciding_loss(drift(splits["train"], splits["validation"]))
    rows = RaceData((data,), schema, monitor)
    how = starting_recipes(schema, len(splits["train"]), epochs)[recipe]
    dim = schema.embedding_dim
    kinds = (("dlrm", (128, 64, 1)), ("deepfm", (128, 64, 1)), ("finalnet", (256, 256, 1)), ("dcn", (128, 64, 1)))
    results: dict[str, list[dict[str, float]]] = {}

    def metrics(trial: Trial, folders: Sequence[Path]) -> dict[str, float]:
        found = {}
        for name in ("validation", "test"):
            scored = [predict(folder, rows.open(name, trial)) for folder in folders]
            measured = click_metrics(mean_prediction([logits.double() for logits, _ in scored]).float(), scored[0][1])
            loss = decisive(measured, monitor) if name == "validation" else measured.log_loss
            assert loss is not None and measured.auc is not None, "a split has clicks and rows without one"
            found |= {name: loss, f"{name} AUC": measured.auc}
        return found

    with process_group() as device:

        def train(trial: Trial, given: RaceData, folder: Path) -> dict[str, float]:
            train_trial(trial, epochs, given, folder, device, lambda *_: False)
            return metrics(trial, [folder])

        teachers = []
        for kind, layers in kinds:
            trial = Trial("finals", "baseline", Baseline(kind, (64, dim), layers), how)
            teachers.append(out / f"teacher-{kind}")
            results[f"teacher {trial.title}"] = [train(trial, rows, teachers[-1])]
        results["all teachers together"] = [metrics(trial, teachers)]
        for title, model in (("dlrm 128-64", cheap_baseline(dim)), ("mlp 64-32", small_mlp(dim))):
            for share in shares:
                given, name = rows, f"{title}, share {share:g}"
                student = Trial("finals", "student", model, how)
                if share:
                    soft = Teachers(tuple(teachers), share, splits["train"]).soft_labels(out / "soft-labels.npy")
                    # Who taught it is in the soft labels; the numbers of a race's trials mean nothing here.
                    given, student = replace(rows, soft_labels=soft), replace(student, teachers=(0,))
                folders = [out / f"{name.replace(' ', '-').replace(',', '')}-seed-{seed}" for seed in seeds]
                runs = zip(seeds, folders, strict=True)
                results[name] = [train(replace(student, seed=seed), given, folder) for seed, folder in runs]
    write_text(out / "results.json", json.dumps({"recipe": asdict(how), "results": results}, indent=2))
    loss = monitor.replace("_", " ")
    print(f"{how}\n\n| model | validation {loss} | test log loss | test AUC | seeds |\n|---|---:|---:|---:|---:|")
    for name, found in results.items():
        columns = (_spread([one[key] for one in found]) for key in ("validation", "test", "test AUC"))
        print(f"| {name} | {' | '.join(columns)} | {len(found)} |")


def _spread(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.5f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.5f}{deviation}"


if __name__ == "__main__":
    run(main)
