"""``nasrec prepare``: a subcommand for each data set, and one for any table."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nasrec_torchrec.cli.program import Program
from nasrec_torchrec.datasets import jobs
from nasrec_torchrec.datasets.config import TextFlags

_NO_FLAGS = TextFlags()
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


def init(
    source: str,
    out: Path | None = None,
    label: str | None = None,
    positive: str | None = None,
    label_above: float | None = None,
    sample_rows: int = 200_000,
    embedding_dim: int = 16,
    overwrite: bool = False,
    as_json: bool = False,
    text: TextFlags = _NO_FLAGS,
) -> str:
    """Looks at raw files, prints what each column holds, and writes a schema that can be prepared as it is.

    Columns that tell the label alone, keys and constants are left out. The file that is written says in comments what
    was seen of each column.

    Args:
        source: files, patterns with * and URIs, several separated by commas; .gz is compressed text.
        out: YAML file to write the schema to; unset, none is written.
        label: column that says what was clicked; unset, one that is called label, clicked, target or the like.
        positive: value of the label that is a click, for labels other than 0 and 1, yes and no, true and false.
        label_above: number above which the label is a click, for a label of numbers.
        sample_rows: number of rows to look at, spread over all files.
        embedding_dim: width of the embedding tables.
        overwrite: whether to replace a file at the same place.
        as_json: whether to print JSON instead of a table.
        text: how lines of text become columns, where that should not be found out.
    """
    from nasrec_torchrec.datasets import proposed

    found = jobs.propose(source, out, label, positive, label_above, sample_rows, embedding_dim, overwrite, text)
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if as_json:
        return json.dumps(proposed.as_document(found))
    lines = [proposed.table(found), "", proposed.summary(found)]
    if out is not None:
        lines += [f"wrote {out}; next:", f"  {proposed.command(found, source, out)}"]
    return "\n".join(lines)


def _preparation(function: Callable[..., Any], example: str) -> Program:
    groups = {"Text files": ("delimiter", "columns", "quoting", "missing")}
    groups["How the work is done"] = ("max_rejects", "piece_mib", "threads", "overwrite")
    example = f"nasrec prepare {example}"
    return Program(function, example, groups, show=_as_indented_json, document=_unchanged, resume=_RESUME)


def _unchanged(summary: dict[str, Any]) -> dict[str, Any]:
    return summary


def _as_indented_json(summary: dict[str, Any]) -> str:
    return json.dumps(summary, indent=2)


PROGRAMS = {
    "init": Program(
        init,
        "nasrec prepare init --source 'logs/*.csv.gz' --label clicked --out schema.yaml",
        {"Text files": ("delimiter", "columns", "quoting", "missing")},
        show=str,
        needs_torch=False,
        records=False,
    ),
    "table": _preparation(jobs.prepare, "table --source 'logs/*.csv.gz' --schema schema.yaml --out DATA --split time"),
    "criteo": _preparation(jobs.prepare_criteo, "criteo --source train.txt --out DATA"),
    "criteo1tb": _preparation(jobs.prepare_criteo1tb, "criteo1tb --source 'days/day_*.gz' --out DATA"),
    "avazu": _preparation(jobs.prepare_avazu, "avazu --source train.gz --out DATA"),
    "kdd2012": _preparation(jobs.prepare_kdd2012, "kdd2012 --source FOLDER --out DATA"),
    "frappe": _preparation(jobs.prepare_frappe, "frappe --source FOLDER --out DATA"),
    "movielens100k": _preparation(jobs.prepare_movielens100k, "movielens100k --out DATA"),
    "describe": Program(describe, "nasrec prepare describe DATA", show=str),
}
