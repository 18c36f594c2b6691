"""Prints, as tables, what ``benchmarks/gpu.sh`` found on a GPU.

    python benchmarks/gpu_report.py --table training --runs runs/gpu

It measures nothing, and leaves out what a step did not get to.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from tabulate import tabulate

from nasrec_torchrec.cli import run

Result = dict[str, Any]
Table = Literal["training", "attention", "search", "export"]
_MODELS = {"criteo-full": "Criteo Full", "criteo-small": "Criteo Small", "dlrm": "DLRM", "supernet-full": "supernet"}


def main(table: Table, runs: Path) -> None:
    """Prints one table.

    Args:
        table: which step's results.
        runs: folder that ``gpu.sh`` wrote.
    """
    rows = list({"training": _training, "attention": _attention, "search": _search, "export": _export}[table](runs))
    print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))


def _training(runs: Path) -> Iterator[Result]:
    results = _read(runs, "training") + _read(runs, "compiled")
    found = {(result["rows"], result["precision"], result["compiled"], result["model"]): result for result in results}
    for rows, precision, compiled in sorted({key[:3] for key in found}, key=lambda key: (key[2], key[0], key[1])):
        line = {"rows": f"{rows:,}", "precision": precision, "mode": "compiled" if compiled else "eager"}
        for model, title in _MODELS.items():
            result = found.get((rows, precision, compiled, model))
            line[f"{title}, ms"] = _milliseconds(result["seconds"]) if result else ""
            line[f"{title}, k rows/s"] = f"{result['rows_per_second'] / 1e3:,.0f}" if result else ""
        yield line


def _attention(runs: Path) -> Iterator[Result]:
    """PyTorch's best kernel beside ours. In float32 flash and efficient attention refuse heads of two columns."""
    for result in (r for r in _read(runs, "attention") if "seconds" in r):
        line = {"rows": f"{result['rows']:,}", "tokens": result["tokens"], "precision": result["precision"]}
        for suffix, title in ((" forward", "forward"), ("", "forward + backward")):
            names = [name for name in ("efficient", "flash", "math") if name + suffix in result["seconds"]]
            best = min(names, key=lambda name: result["seconds"][name + suffix][0])
            theirs, ours = result["seconds"][best + suffix], result["seconds"]["ours" + suffix]
            line[f"{title}: PyTorch's best, ms"] = f"{_milliseconds(theirs)} {best}"
            line[f"{title}: ours, ms"] = _milliseconds(ours)
            line[f"{title}: times as fast"] = f"{theirs[0] / ours[0]:.1f}"
        yield line


def _search(runs: Path) -> Iterator[Result]:
    for result in _read(runs, "search"):
        rates = result["passes_over_the_paper_rows_per_minute"]
        yield {
            "rows in a pass": f"{result['chunk']:,}",
            **{f"candidates per minute, {name}": f"{rates[name]:.0f}" for name in ("alone", "shared")},
        }


def _export(runs: Path) -> Iterator[Result]:
    for result in (r for r in _read(runs, "export") if "rows" in r):
        seconds = result["seconds"]
        yield {
            "rows": f"{result['rows']:,}",
            **{f"{name}, ms": _milliseconds(seconds[name]) for name in ("eager", "package")},
            "relative difference": f"{result['difference']:.0e}",
        }


def _milliseconds(deciles: list[float]) -> str:
    median, first, last = (1e3 * value for value in deciles)
    return f"{median:.3g} ({first:.3g}-{last:.3g})"


def _read(runs: Path, step: str) -> list[Result]:
    file = runs / f"{step}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


if __name__ == "__main__":
    run(main)
