"""Measures what checking data costs a training: an epoch of DLRM with and without checksums, in turns.

    python benchmarks/checksums.py

With them, every file is compared with the manifest's SHA-256 before its first row is read, and every Parquet page with
its own checksum. One epoch is the worst case: a process compares each file once, however many epochs follow. Figures
are processor time of one thread, so that other work on the machine does not count.
"""

import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from click_steps import ClickSteps
from criteo_shaped import write_text

from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets.click_data import ClickData
from nasrec_torchrec.datasets.config import SplitConfig
from nasrec_torchrec.datasets.preparation import prepare
from nasrec_torchrec.datasets.prepared import open_split
from nasrec_torchrec.datasets.public import criteo_kaggle
from nasrec_torchrec.datasets.reader import ClickFiles, TrainingReader
from nasrec_torchrec.distributed.process_group import process_group
from nasrec_torchrec.models.config import Baseline
from nasrec_torchrec.models.description import ModelDescription

_EVERYTHING = SplitConfig("time", validation_share=0, test_share=0)


def main(rows: int = 200_000, batch_size: int = 4096, rounds: int = 7, quick: bool = False) -> None:
    """Trains epochs in turns.

    Args:
        rows: Number of rows of an epoch.
        batch_size: Number of rows of a step.
        rounds: Number of epochs of each kind.
        quick: Trains on few rows, to see that it works.
    """
    if quick:
        rows, batch_size, rounds = 4_000, 512, 1
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as folder, process_group() as device:
        text, data = Path(folder) / "train.txt", Path(folder) / "data"
        write_text(text, rows)
        schema = prepare(replace(criteo_kaggle(str(text), 10_000, 16), split=_EVERYTHING), data)
        model = Baseline("dlrm", (512, 256, 16), (512, 512, 256, 1))
        first = next(iter(TrainingReader(open_split(data, "train"), batch_size, 0)))
        steps = ClickSteps(ModelDescription(schema, model), first, device)
        steps.train()
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for number in range(rounds):
            # What comes first takes turns as well.
            for checked in (True, False) if number % 2 else (False, True):
                # A process compares each file once, so that every epoch needs files of its own.
                copy = Path(folder) / f"{number}-{checked}"
                shutil.copytree(data, copy)
                started = time.process_time()
                _epoch(steps, copy, batch_size, checked)
                seconds[checked].append(time.process_time() - started)
                shutil.rmtree(copy)
            print(f"round {number + 1}: {seconds[True][-1]:.2f} s with checksums, {seconds[False][-1]:.2f} s without")
        size = sum(file.stat().st_size for file in open_split(data, "train").files)
        with_them, without = statistics.median(seconds[True]), statistics.median(seconds[False])
        share = statistics.median(a / b - 1 for a, b in zip(seconds[True], seconds[False], strict=True))
        verifying = _verifying(data, folder)
    print(f"{rows:,} rows in {size / 1e6:.1f} MB, batches of {batch_size:,}, medians of {rounds} epochs of DLRM")
    print(f"  with checksums     {with_them:8.2f} s")
    print(f"  without            {without:8.2f} s   difference {share:+.2%}")
    print(f"  comparing alone    {verifying:8.3f} s   {verifying / without:.2%} of an epoch")


def _epoch(steps: ClickSteps, data: Path, batch_size: int, checked: bool) -> None:
    files = open_split(data, "train")
    if not checked:
        files = _unchecked(files)
    for batch in TrainingReader(files, batch_size, 0):
        steps.batch = batch
        steps.train()


def _verifying(data: Path, folder: str) -> float:
    """Seconds that reading all rows takes longer with checksums than without."""
    differences = []
    for number in range(5):
        copy = Path(folder) / f"alone-{number}"
        shutil.copytree(data, copy)
        files = open_split(copy, "train")
        found = []
        for reader in (_unchecked(files), files):
            started = time.process_time()
            for group in range(len(reader.groups)):
                reader.read(group)
            found.append(time.process_time() - started)
        differences.append(found[1] - found[0])
    return statistics.median(differences)


def _unchecked(files: ClickFiles) -> ClickFiles:
    return _Unchecked(files.schema, files.files, files.groups, (None,) * len(files.files))


class _Unchecked(ClickFiles):
    """Reads without comparing anything."""

    def read(self, group: int, order: np.ndarray | None = None) -> ClickData:
        index, number, _ = self.groups[group]
        with pq.ParquetFile(self.files[index], memory_map=True) as opened:
            table = opened.read_row_group(number, columns=self.schema.columns, use_threads=False)
        return ClickData.from_table(table, self.schema, "unchecked", order)


if __name__ == "__main__":
    run(main)
