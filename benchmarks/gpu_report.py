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
Table = Literal["training", "graphs", "lookup", "attention", "search", "export"]
_MODELS = {"criteo-full": "Criteo Full", "criteo-small": "Criteo Small", "dlrm": "DLRM", "supernet-full": "supernet"}


def main(table: Table, runs: Path) -> None:
    """Prints one table.

    Args:
        table: which step's results.
        runs: folder that ``gpu.sh`` wrote.
    """
    tables = {
        "training": _training,
        "graphs": _graphs,
        "lookup": _lookup,
        "attention": _attention,
        "search": _search,
        "export": _export,
    }
    print(tabulate(list(tables[table](runs)), headers="keys", tablefmt="github", disable_numparse=True))


def _training(runs: Path) -> Iterator[Result]:
    found = {
        (result["rows"], result["precision"], result["model"]): result
        for result in _read(runs, "training")
        if "seconds" in result
    }
    for rows, precision in sorted({key[:2] for key in found}):
        line = {"rows": f"{rows:,}", "precision": precision, "mode": "eager"}
        for model, title in _MODELS.items():
            result = found.get((rows, precision, model))
            line[f"{title}, ms"] = _milliseconds(result["seconds"]) if result else ""
            line[f"{title}, k rows/s"] = f"{result['rows_per_second'] / 1e3:,.0f}" if result else ""
        yield line


def _graphs(runs: Path) -> Iterator[Result]:
    """How much faster a training step is than kernel by kernel, which was measured in turns with the graphs."""
    found = {
        (result["model"], result["rows"], result["precision"], result["mode"]): result
        for result in _read(runs, "graphs") + _read(runs, "compiled")
        if "seconds" in result
    }
    for model, rows, precision in dict.fromkeys(key[:3] for key in found):
        line = {"model": _MODELS[model], "rows": f"{rows:,}", "precision": precision}
        eager = found.get((model, rows, precision, "eager"))
        for mode in ("eager", "graphs", "compiled", "compiled graphs"):
            result = found.get((model, rows, precision, mode))
            line[f"{mode}, ms"] = _milliseconds(result["seconds"]) if result else ""
            if mode != "eager":
                times = f"{eager['seconds'][0] / result['seconds'][0]:.1f}" if eager and result else ""
                line[f"{mode}: times as fast"] = times
        for mode in ("eager", "graphs"):
            result = found.get((model, rows, precision, mode))
            line[f"{mode}, MiB"] = f"{result['peak_memory'] / 2**20:,.0f}" if result and result["peak_memory"] else ""
        yield line


def _lookup(runs: Path) -> Iterator[Result]:
    for result in (r for r in _read(runs, "lookup") if "memory" in r):
        yield {
            "rows of a batch": f"{result['rows']:,}",
            "rows of a table": f"{result['table_rows']:,}",
            "table_memory": result["memory"],
            "ms": _milliseconds(result["seconds"]),
            "GB/s": f"{result['bytes_per_second'] / 1e9:.0f}",
            "memory of the GPU, MiB": f"{result['peak_memory'] / 2**20:,.0f}" if result["peak_memory"] else "",
        }


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
    results = _read(runs, "export")
    graphs = {(r["graph_of"], r["rows"]): r["seconds"] for r in results if "graph_of" in r and "seconds" in r}
    for result in (r for r in results if "difference" in r):
        seconds, rows = result["seconds"], result["rows"]
        yield {
            "rows": f"{rows:,}",
            **{f"{name}, ms": _milliseconds(seconds[name]) for name in ("eager", "package")},
            **{
                f"{name} as a graph, ms": _milliseconds(graphs[name, rows]) if (name, rows) in graphs else ""
                for name in ("eager", "package")
            },
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
