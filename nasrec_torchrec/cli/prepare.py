"""``nasrec prepare``: a subcommand for each data set, and one for any table."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasrec_torchrec.cli.program import Program
from nasrec_torchrec.datasets import jobs
from nasrec_torchrec.finite import json_text

if TYPE_CHECKING:
    from nasrec_torchrec.datasets.proposal import Proposal
    from nasrec_torchrec.datasets.statistics import Statistics

_RESUME = "run the same command again to resume after the last finished piece"


def describe(
    folder: Path, /, split: str = "train", top: int = 5, picture: Path | None = None
) -> "tuple[Statistics, Path]":
    """Checks a prepared data set against its checksums and prints what is in it, with a picture.

    Args:
        folder: folder of a prepared data set.
        split: split whose columns are measured.
        top: number of the most frequent values to print of each feature.
        picture: PNG file to write; if unset, statistics.png in the folder.
    """
    return jobs.describe(folder, split, top, picture)


def _statistics_document(found: "tuple[Statistics, Path]") -> dict[str, Any]:
    return found[0].to_json() | {"picture": str(found[1])}


@dataclass(frozen=True)
class _Proposed:
    proposal: "Proposal"
    source: str
    out: Path | None
    query: str | None


@wraps(jobs.propose)  # the flags and their help are those of the function
def _init(source: str, out: Path | None = None, query: str | None = None, **more: Any) -> _Proposed:
    found = jobs.propose(source, out, query=query, **more)
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return _Proposed(found, source, out, query)


def _described(found: _Proposed) -> str:
    from nasrec_torchrec.datasets import proposed

    lines = [proposed.table(found.proposal), "", proposed.summary(found.proposal)]
    if found.out is not None:
        then = proposed.command(found.proposal, found.source, found.out, found.query)
        lines += [f"wrote {found.out}; next:", f"  {then}"]
    return "\n".join(lines)


def _document(found: _Proposed) -> dict[str, Any]:
    from nasrec_torchrec.datasets import proposed

    return proposed.as_document(found.proposal)


def _preparation(function: Callable[..., Any], example: str) -> Program:
    groups = {"Text files": ("delimiter", "columns", "quoting", "missing")}
    groups["How the work is done"] = ("max_rejects", "piece_mib", "threads", "overwrite")
    example = f"nasrec prepare {example}"
    return Program(
        function,
        example,
        groups,
        show=_counted,
        piped=partial(json_text, indent=2),
        document=_unchanged,
        resume=_RESUME,
    )


def _unchanged(summary: dict[str, Any]) -> dict[str, Any]:
    return summary


def _counted(summary: dict[str, Any]) -> str:
    """A table of the splits, and where the data set and its rejects are."""
    from tabulate import tabulate

    from nasrec_torchrec.datasets.prepared import REJECTS

    rows = []
    for name, split in summary["splits"].items():
        counts = {"": split, **{f", {task}": found for task, found in split.get("tasks", {}).items()}}
        for task, found in counts.items():
            rate = f"{found['positives'] / found['rows']:.2%}" if found["rows"] else ""
            rows.append([name + task, f"{found['rows']:,}", f"{found['positives']:,}", rate])
    align = ("left", "right", "right", "right")
    text = tabulate(rows, ("split", "rows", "clicks", "click rate"), "simple", colalign=align, disable_numparse=True)
    rejected, out = summary["rejected"], summary["out"]
    listed = f" rejected, see {out}/{REJECTS}" if rejected else " rejected"
    return f"{text}\n{rejected:,} row{'' if rejected == 1 else 's'}{listed}\nwrote {out}"


PROGRAMS = {
    "init": Program(
        _init,
        "nasrec prepare init --source 'logs/*.csv.gz' --label clicked --out schema.yaml",
        {"Text files": ("delimiter", "columns", "quoting", "missing")},
        show=_described,
        document=_document,
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
    "describe": Program(
        describe,
        "nasrec prepare describe DATA",
        show=lambda found: f"{found[0]}\npicture: {found[1]}",
        document=_statistics_document,
    ),
}
