"""The demo: ``nasrec auto`` on MovieLens-100K beside what a user would try instead, each for the same seconds."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from html import escape
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from nasrec_torchrec import datasets, inference
from nasrec_torchrec.datasets.prepared import load_schema, open_split
from nasrec_torchrec.metrics.click_metrics import click_metrics
from nasrec_torchrec.runs import names
from nasrec_torchrec.runs.files import atomic_path, write_text
from nasrec_torchrec.runs.folder import clear
from nasrec_torchrec.search.race import RaceConfig, auto
from nasrec_torchrec.search.race.finish import read_results
from nasrec_torchrec.search.race.report import figure
from nasrec_torchrec.search.race.training import RaceData
from nasrec_torchrec.search.race.trial import Trial

CONFIG = RaceConfig()
_ALONE = {"features": False, "drop_columns": False, "trees": False, "students": False}
# By its folder, what each procedure is and may do.
RACES: dict[str, tuple[str, dict[str, Any]]] = {
    "auto": ("nasrec auto", {}),
    "random-networks": ("random networks alone", {"sources": ("random",), **_ALONE}),
    "baselines": ("baselines alone, tuned", {"sources": ("baseline",), **_ALONE}),
}
_CHANGES = {"features": "added", "dropped": "dropped"}
_PICTURE = "race.png"


def run_races(out: Path, budget: str, workers: int, seed: int) -> list[dict[str, Any]]:
    """Runs the demo; see :func:`nasrec_torchrec.demo.run`."""
    started = time.perf_counter()
    data = out / "data"
    _say(json.dumps(datasets.prepare_movielens100k(data, overwrite=True)))
    rows = []
    for name, (title, changes) in RACES.items():
        config = replace(CONFIG, budget=budget, seed=seed, **changes)
        rows.append({"procedure": title, **_shipped(_race(data, out / name, config, workers))})
    results = read_results(out / "auto")
    assert results is not None, "it has just been written"
    if (tree := results["measured"].get("tree")) is not None:
        (test,) = tree["test"]
        spent = next(row["seconds"] for row in results["sources"] if row["source"] == "LightGBM")
        rows.append(
            {
                "procedure": "LightGBM",
                "model": tree["recipe"].split(",")[0],
                "trainings": 1,
                "seconds": spent,
                **_picked(test),
            }
        )
    raced = sorted((out / "auto").glob(f"{names.RACE_DATA}-*"), key=lambda folder: int(folder.name.rpartition("-")[2]))
    folder = RaceData((data, *raced), load_schema(data)).folder(Trial.from_dict(results["model"]))
    _say(str(inference.export(out / "auto", out / "export", data=folder)))
    scoring = inference.ScoringConfig(overwrite=True)
    _say(json.dumps(inference.score(out / "export", str(folder / "test"), out / "scores", scoring)))
    scored = pq.read_table(out / "scores")
    probability, label = (torch.tensor(scored[name].to_pylist()) for name in ("probability", load_schema(data).label))
    again = click_metrics(torch.logit(probability.double()), label)

    table = format_table(rows)
    write_text(out / "report.json", json.dumps(rows, indent=2))
    with atomic_path(out / _PICTURE) as temporary:
        temporary.write_bytes(figure(results))
    write_text(out / names.REPORT, _page(table, results["verdict"]))
    tested = len(open_split(data, "test"))
    print(
        f"MovieLens-100K, split by time: the model that each would ship, on the {tested:,} test rows.\n"
        f"Each had {budget} and {workers} {'process' if workers == 1 else 'processes'}.\n\n{table}\n\n"
        "with others: the log loss of its mean prediction with models of the same race, where that was better on the "
        "validation rows"
    )
    print(f"\nTest log loss of the exported model, from its scores: {again.log_loss:.4f}")
    print(f"Report: {out}/report.html, and all trainings of the race: {out}/auto/report.html")
    print(f"Took {time.perf_counter() - started:.0f} s.")
    return rows


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the rows as Markdown, which a terminal shows well too."""
    width = max(24, *(len(row["model"]) for row in rows))
    lines = [
        f"| procedure              | {'ships':<{width}} | log loss | with others |    AUC | trainings | seconds |",
        f"|------------------------|{'-' * (width + 2)}|---------:|------------:|-------:|----------:|--------:|",
    ]
    for row in rows:
        others = f"{row['together']:.4f}" if row.get("together") else ""
        lines.append(
            f"| {row['procedure']:<22} | {row['model']:<{width}} | {row['log_loss']:>8.4f} | {others:>11} "
            f"| {row['auc']:>6.4f} | {row['trainings']:>9} | {row['seconds']:>7.0f} |"
        )
    return "\n".join(lines)


def _say(text: str) -> None:
    """Tells how far the demo is; standard output is for what it found."""
    print(text, file=sys.stderr, flush=True)


def _race(data: Path, out: Path, config: RaceConfig, workers: int) -> dict[str, Any]:
    """One race from scratch, in this process or shared by several."""
    if out.exists():
        clear(out, "race")
    if workers == 1:
        results = auto(data, out, config)
        assert results is not None, "one rank"
        return results
    words = [sys.executable, "-m", "nasrec_torchrec", "auto", "--data", str(data), "--out", str(out)]
    for field in fields(config):
        value = getattr(config, field.name)
        if value != field.default and field.name != "quiet":
            words += [f"--{field.name}", value if isinstance(value, str) else json.dumps(value)]
    _say(f"\n$ {shlex.join(['nasrec', *words[3:]])}")
    quiet = [False, *(True for _ in range(workers - 1))]
    # Several processes with a thread for every core each would wait for one another most of the time.
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    processes = [
        subprocess.Popen([*words, "--quiet", json.dumps(one)], stdout=subprocess.DEVNULL, env=environment)
        for one in quiet
    ]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise ValueError(f"{out}: a worker of the race failed; its output is above")
    found = read_results(out)
    assert found is not None, "the workers have ended"
    _say(found["verdict"])
    return found


def _shipped(results: dict[str, Any]) -> dict[str, Any]:
    """The model that a race chose, and its test metrics."""
    best = results["measured"]["winner"]
    counts = {word: len(best[kind]) for kind, word in _CHANGES.items() if best[kind]}
    changes = [f"{count} column{'s' if count > 1 else ''} {word}" for word, count in counts.items()]
    together = results["ensemble"]
    return {
        "together": together["test"]["log_loss"] if together else None,
        "model": ", ".join([best["title"], *changes]),
        "trainings": len(results["trials"]),
        "seconds": results["seconds"],
        **_picked(best["test"][best["seeds"].index(results["model"]["seed"])]),
    }


def _picked(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: metrics[name] for name in ("log_loss", "auc")}


def _page(table: str, verdict: str) -> str:
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>nasrec auto on MovieLens-100K</title>
<style>body{{font-family:sans-serif;max-width:1100px;margin:2em auto}}img{{max-width:100%}}</style></head><body>
<h1>nasrec auto on MovieLens-100K</h1>
<h2>Each for the same seconds, on the test split</h2><pre>{escape(table)}</pre>
<h2>What the race found</h2><pre style="white-space:pre-wrap">{escape(verdict)}</pre>
<p><a href="auto/{names.REPORT}">Everything about it</a></p>
<img src="{_PICTURE}" alt="losses over time, and loss against latency">
</body></html>
"""
