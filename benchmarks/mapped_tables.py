"""Packages whose tables are mapped beside packages that hold them: memory, start and latency.

    python benchmarks/mapped_tables.py --out runs/mapped --rows 8000000

The same MLP over four tables of 16 columns is exported both ways. Each package is loaded by processes of their own, in
turns, whose memory is read from the operating system. Each is also loaded by a process that may take no more than half
of the tables' bytes in addition (``RLIMIT_DATA``, for which files that are mapped for reading do not count).
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from process_memory import mib

from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.inference.config import ExportConfig
from nasrec_torchrec.inference.exporting import export
from nasrec_torchrec.inference.predictor import Predictor, Request
from nasrec_torchrec.models.config import Baseline
from nasrec_torchrec.models.description import ModelDescription

_FEATURES, _BATCH = 4, 64
# What is measured, and its decimals in the table.
_COLUMNS = {"memory": 0, "start": 1, "first": 2, "later": 2}


def main(out: Path, rows: int = 8_000_000, rounds: int = 3, calls: int = 2000) -> None:
    """Exports both packages unless they are there, measures, and prints a table.

    Args:
        out: folder of the packages.
        rows: rows of each table.
        rounds: processes that load each of the packages.
        calls: requests of 64 rows with random ids in each process.
    """
    for name in ("held", "mapped"):
        if not (out / name / "model.json").exists():
            sparse = tuple(SparseFeature(f"f{place}", rows) for place in range(_FEATURES))
            schema = Schema("label", (DenseFeature("d"),), sparse)
            model = ModelDescription(schema, Baseline("mlp", (64, 16), (64, 1))).build().eval()
            export(model, schema, out / name, ExportConfig(map_tables=name == "mapped"))
            del model
    tables = sum(file.stat().st_size for file in (out / "mapped" / "tables").iterdir())
    found: dict[str, list[dict[str, float]]] = {"held": [], "mapped": []}
    for _ in range(rounds):
        for name, measured in found.items():
            measured.append(json.loads(_process("measure", out / name, rows, calls).stdout))
    print(f"{tables / 2**20:,.0f} MiB of tables; {_BATCH} rows a request\n")
    limit = tables // 2
    print(f"| tables | own memory, MiB | start, s | first calls, ms | later calls, ms | with {limit >> 20:,} MiB |")
    print("|---|---:|---:|---:|---:|---|")
    for name, measured in found.items():
        cells = [f"{np.median([one[key] for one in measured]):,.{digits}f}" for key, digits in _COLUMNS.items()]
        works = "runs" if not _process("measure", out / name, rows, 10, limit).returncode else "fails"
        print(f"| {name} | {' | '.join(cells)} | {works} |")


def _process(*words: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, __file__, *map(str, words)], stdout=subprocess.PIPE, text=True)


def measure(package: Path, rows: int, calls: int, limit: int | None = None) -> None:
    """Loads a package, scores, and prints JSON: the process's own memory in MiB, and times."""
    torch.set_num_threads(1)
    before = mib("RssAnon")
    if limit is not None:
        most = limit + int(mib("VmData") * 2**20)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    started = time.perf_counter()
    predictor = Predictor(package)
    start = time.perf_counter() - started
    times = []
    lengths = torch.ones(_FEATURES, _BATCH, dtype=torch.int64)
    for _ in range(calls):
        request = Request(torch.randint(0, rows, (_FEATURES * _BATCH,)), lengths, torch.zeros(_BATCH, 1))
        started = time.perf_counter()
        predictor.predict(request)
        times.append(1e3 * (time.perf_counter() - started))
    half = calls // 2
    found = {"first": float(np.median(times[:half])), "later": float(np.median(times[half:]))}
    print(json.dumps({"memory": mib("RssAnon") - before, "start": start, **found}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        folder, *numbers = sys.argv[2:]
        measure(Path(folder), *map(int, numbers))
    else:
        run(main)
