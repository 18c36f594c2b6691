"""The steps of the demo, and the page and the table that it ends with."""

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from nasrec_torchrec import datasets, inference, search
from nasrec_torchrec.architecture import Architecture
from nasrec_torchrec.datasets.prepared import load_schema, open_split
from nasrec_torchrec.demo.launch import launch
from nasrec_torchrec.drawing import to_svg
from nasrec_torchrec.metrics.click_metrics import click_metrics
from nasrec_torchrec.models.stored import load_model, read_description
from nasrec_torchrec.runs.checkpoint import kept_checkpoint
from nasrec_torchrec.runs.files import read_text, write_text
from nasrec_torchrec.runs.names import ARCHITECTURES, METRICS, REPORT
from nasrec_torchrec.search.config import EvaluationConfig, EvolutionConfig
from nasrec_torchrec.search.cost import model_multiply_adds
from nasrec_torchrec.search_space import SearchSpace
from nasrec_torchrec.training.config import TrainConfig

SPACE = SearchSpace(num_blocks=3, dense_widths=(16, 32, 64, 128), sparse_widths=(8, 16, 32))
SUPERNET = TrainConfig(6, 256, 0.05, full_path_steps=100, resume="never")
EVOLUTION = EvolutionConfig(population=32, generations=8, children=8, tournament=16)
FINETUNING = EvaluationConfig(finetune_steps=60, finetune_batch_size=256)
TRAINING = TrainConfig(2, 256, 0.1, resume="never")
# Every model is tuned with two trials, each repeated with three seeds: two learning rates, or the two best candidates.
LEARNING_RATES = (0.1, 0.2)


def run_demo(out: Path, ranks: int, seed: int) -> list[dict[str, Any]]:
    """Runs the demo; see :func:`nasrec_torchrec.demo.run`."""
    started = time.perf_counter()
    data = out / "data"
    print(json.dumps(datasets.prepare_movielens100k(data, overwrite=True)), flush=True)
    launch(
        *("train_supernet", ranks),
        data=data,
        out=out / "supernet",
        space=SPACE,
        config=replace(SUPERNET, seed=seed),
    )
    launch(
        *("search", 1),
        supernet=out / "supernet",
        data=data,
        out=out / "search",
        evolution=replace(EVOLUTION, seed=seed),
        evaluation=FINETUNING,
        top_k=2,
        resume="never",
    )
    random_architecture = SPACE.sample(torch.Generator().manual_seed(seed))
    write_text(out / "random.json", random_architecture.to_json())
    candidates: dict[str, tuple[str, str, tuple[float, ...]]] = {
        "DLRM": ("dlrm", "dlrm", LEARNING_RATES),
        "random NASRecNet": ("random", str(out / "random.json"), LEARNING_RATES),
        "searched NASRecNet": ("nasrecnet", str(out / "search" / ARCHITECTURES), ()),
    }
    rows = []
    for title, (name, architecture, rates) in candidates.items():
        launch(
            *("train", ranks),
            data=data,
            out=out / name,
            architecture=architecture,
            config=TRAINING,
            learning_rates=rates,
            seeds=(seed, seed + 1, seed + 2),
        )
        rows.append(table_row(title, out / name, data))
    print(search.write_report(out / "search", (out / "nasrecnet",)), flush=True)
    print(inference.export(out / "nasrecnet", out / "export", data=data), flush=True)
    scoring = inference.ScoringConfig(overwrite=True)
    print(json.dumps(inference.score(out / "export", str(data / "test"), out / "scores", scoring)), flush=True)

    exported = pq.read_table(out / "scores")
    columns = "probability", load_schema(data).label
    probability, label = (torch.tensor(exported[name].to_pylist()) for name in columns)
    again = click_metrics(torch.logit(probability.double()), label)
    table = format_table(rows)
    write_text(out / "report.json", json.dumps(rows, indent=2))
    write_report(out, table)
    print(
        f"\nMovieLens-100K, test split ({again.rows} rows): mean and deviation over three seeds,"
        " each model at the best of its two trials on validation\n"
    )
    print(table)
    print(f"\nTest log loss of the exported model (the best seed on validation), from its scores: {again.log_loss:.4f}")
    print(f"Report: {out}/report.html   TensorBoard: tensorboard --logdir {out}")
    print(f"Took {time.perf_counter() - started:.0f} s.")
    return rows


def table_row(title: str, run_dir: Path, data: Path) -> dict[str, Any]:
    """Cost, and test metrics over the seeds, of the trial that did best on validation."""
    _, model = load_model(run_dir)
    best = json.loads(read_text(run_dir / METRICS))["best"]
    rows = open_split(data, "test").read(0).select(torch.arange(8))
    return {
        "model": title,
        "auc": [run["test"]["auc"] for run in best["runs"]],
        "log_loss": [run["test"]["log_loss"] for run in best["runs"]],
        "parameters": best["dense_parameters"],
        "multiply_adds": model_multiply_adds(model, rows),
        "training_seconds": statistics.fmean(run["training_seconds"] for run in best["runs"]),
    }


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the rows as Markdown, which a terminal shows well too."""

    def spread(values: Sequence[float]) -> str:
        return f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}"

    lines = [
        "| model              |             AUC |        log loss | parameters* | multiply-adds | training |",
        "|--------------------|----------------:|----------------:|------------:|--------------:|---------:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['model']:<18} | {spread(row['auc'])} | {spread(row['log_loss'])} | {row['parameters']:>11,} "
            f"| {row['multiply_adds']:>13,} | {row['training_seconds']:>6.1f} s |"
        )
    lines.append("\n*without the embedding tables, which are the same for all")
    return "\n".join(lines)


def write_report(out: Path, table: str) -> None:
    """One page: the table, the search's picture and the drawing of the winner."""
    winner = read_description(kept_checkpoint(out / "nasrecnet")).interaction
    assert isinstance(winner, Architecture)
    write_text(out / "nasrecnet" / "architecture.svg", to_svg(winner))
    write_text(
        out / REPORT,
        f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>NASRec on MovieLens-100K</title>
<style>body{{font-family:sans-serif;max-width:1100px;margin:2em auto}}img{{max-width:100%}}</style></head><body>
<h1>NASRec on MovieLens-100K</h1>
<h2>Test split</h2><pre>{escape(table)}</pre>
<h2>The searched architecture</h2><img src="nasrecnet/architecture.svg" alt="the searched architecture">
<h2>The search</h2><p><a href="search/report.html">Everything about it</a></p>
<img src="search/search.png" alt="candidates over time, and loss against multiply-adds">
</body></html>
""",
    )
