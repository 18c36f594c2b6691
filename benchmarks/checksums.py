"""Measures what checksums cost a training: a whole training of DLRM with and without them, in turns.

    python benchmarks/checksums.py

With them, every file of the data set is compared with the SHA-256 of the manifest before its first row is read, every
Parquet page with its own checksum, and every file of a checkpoint gets a SHA-256 while it is written. One epoch is the
worst case: a process compares each file once, however many epochs follow. Figures are processor time of all threads, so
that other work on the machine does not count.
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from criteo_shaped import write_text
from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter

from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets.click_data import ClickData
from nasrec_torchrec.datasets.config import SplitConfig
from nasrec_torchrec.datasets.preparation import prepare
from nasrec_torchrec.datasets.prepared import open_split
from nasrec_torchrec.datasets.public import criteo_kaggle
from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.distributed.process_group import process_group
from nasrec_torchrec.models.config import Baseline
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.runs import checkpoint
from nasrec_torchrec.training.config import TrainConfig
from nasrec_torchrec.training.trainer import Trainer

_EVERYTHING = SplitConfig("time", validation_share=0, test_share=0)


def main(rows: int = 200_000, batch_size: int = 4096, rounds: int = 7, quick: bool = False) -> None:
    """Trains in turns.

    Args:
        rows: Number of rows of an epoch.
        batch_size: Number of rows of a step.
        rounds: Number of trainings of each kind.
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
        model = ModelDescription(schema, Baseline("dlrm", (512, 256, 16), (512, 512, 256, 1)))
        # A checkpoint in the middle of the epoch, and one at its end.
        config = TrainConfig(batch_size=batch_size, checkpoint_every=max(1, rows // batch_size // 2))
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for number in range(-1, rounds):
            # What comes first takes turns as well.
            for checked in (True, False) if number % 2 else (False, True):
                # A process compares each file once, so that every training needs files of its own.
                copy, run_dir = Path(folder) / "copy", Path(folder) / "run"
                shutil.copytree(data, copy)
                files = open_split(copy, "train")
                started = time.process_time()
                with nullcontext() if checked else _without_digests():
                    Trainer(model, config, run_dir, device).train(files if checked else _unchecked(files))
                if number >= 0:  # the first ones warm up
                    seconds[checked].append(time.process_time() - started)
                written = sum(file.stat().st_size for file in run_dir.glob("checkpoints/step-*/*.distcp"))
                shutil.rmtree(copy)
                shutil.rmtree(run_dir)
        size = sum(file.stat().st_size for file in open_split(data, "train").files)
        with_them, without = statistics.median(seconds[True]), statistics.median(seconds[False])
        share = statistics.median(a / b - 1 for a, b in zip(seconds[True], seconds[False], strict=True))
    print(f"{rows:,} rows in {size / 1e6:.1f} MB, batches of {batch_size:,}, two checkpoints of {written / 2e6:.1f} MB")
    print(f"  with checksums     {with_them:8.2f} s   median of {rounds} trainings of DLRM, one epoch each")
    print(f"  without            {without:8.2f} s   difference {share:+.2%}")


@contextmanager
def _without_digests() -> Iterator[None]:
    kept = checkpoint.DigestingWriter
    checkpoint.DigestingWriter = _Plain  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        checkpoint.DigestingWriter = kept  # type: ignore[misc]


class _Plain(FsspecWriter):
    """Writes tensors as they are."""

    digests: ClassVar[dict[str, str]] = {}

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))


def _unchecked(files: ClickFiles) -> ClickFiles:
    return _Unchecked(files.schema, files.files, files.groups, (None,) * len(files.files))


class _Unchecked(ClickFiles):
    """Reads without comparing anything."""

    @property
    def digest(self) -> str:
        return ""

    def read(self, group: int, order: np.ndarray | None = None) -> ClickData:
        index, number, _ = self.groups[group]
        with pq.ParquetFile(self.files[index], memory_map=True) as opened:
            table = opened.read_row_group(number, columns=self.schema.columns, use_threads=False)
        return ClickData.from_table(table, self.schema, "unchecked", order)


if __name__ == "__main__":
    run(main)
