"""``nasrec prepare``: a subcommand for each data set, and one for any table."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nasrec_torchrec.cli.program import Program
from nasrec_torchrec.datasets import jobs

_RESUME = "run the same command again to resume after the last finished piece"


def describe(folder: Path, /, split: str = "train", top: int = 5, picture: Path | None = None) -> str:
    """Checks a prepared data set against its checksums and prints what is in it, with a picture.

    Args:
        folder: folder of a prepared data set.
        split: split whose columns are measured.
        top: number of the most frequent values to print of each feature.
        picture: PNG file to write; if unset, statistics.png in the folder.
    """
    text, file = jobs.describe(folder, split, top, picture)
    return f"{text}\npicture: {file}"


def _preparation(function: Callable[..., Any], example: str) -> Program:
    groups = {"Text files": ("delimiter", "columns", "quoting", "missing")}
    groups["How the work is done"] = ("max_rejects", "piece_mib", "threads", "overwrite")
    return Program(function, f"nasrec prepare {example}", groups, _as_indented_json, _RESUME)


def _as_indented_json(summary: dict[str, Any]) -> str:
    return json.dumps(summary, indent=2)


PROGRAMS = {
    "table": _preparation(jobs.prepare, "table --source 'logs/*.csv.gz' --schema schema.yaml --out DATA --split time"),
    "criteo": _preparation(jobs.prepare_criteo, "criteo --source train.txt --out DATA"),
    "criteo1tb": _preparation(jobs.prepare_criteo1tb, "criteo1tb --source 'days/day_*.gz' --out DATA"),
    "avazu": _preparation(jobs.prepare_avazu, "avazu --source train.gz --out DATA"),
    "kdd2012": _preparation(jobs.prepare_kdd2012, "kdd2012 --source FOLDER --out DATA"),
    "frappe": _preparation(jobs.prepare_frappe, "frappe --source FOLDER --out DATA"),
    "movielens100k": _preparation(jobs.prepare_movielens100k, "movielens100k --out DATA"),
    "describe": Program(describe, "nasrec prepare describe DATA", show=str),
}
